//! Parameters as Stripe takes them: `application/x-www-form-urlencoded` with brackets for what is inside of what. Pure.

use serde_json::{Map, Value};

/// Reads parameters into objects of objects of text: `a[b][0]=c` is `{"a": {"b": {"0": "c"}}}`.
///
/// # Errors
/// Which parameter is written wrongly, or is both a value and an object.
pub fn read(text: &str) -> Result<Map<String, Value>, String> {
    let mut root = Map::new();
    for (key, value) in form_urlencoded::parse(text.as_bytes()) {
        let path = path(&key).ok_or_else(|| key.to_string())?;
        put(&mut root, &path, &value).ok_or_else(|| key.to_string())?;
    }
    Ok(root)
}

fn path(key: &str) -> Option<Vec<&str>> {
    let Some((first, rest)) = key.split_once('[') else {
        return (!key.is_empty()).then(|| vec![key]);
    };
    let inner = rest.strip_suffix(']')?;
    let path: Vec<_> = std::iter::once(first).chain(inner.split("][")).collect();
    let is_name = |part: &&str| !part.is_empty() && !part.contains(['[', ']']);
    path.iter().all(is_name).then_some(path)
}

fn put(object: &mut Map<String, Value>, path: &[&str], value: &str) -> Option<()> {
    match path {
        [] => None,
        [last] => {
            let before = object.insert((*last).to_owned(), Value::String(value.to_owned()));
            before.is_none().then_some(())
        }
        [first, rest @ ..] => {
            let inner = object.entry(*first).or_insert_with(|| Value::Object(Map::new()));
            put(inner.as_object_mut()?, rest, value)
        }
    }
}

/// The other way round.
pub fn write<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn brackets_are_objects() {
        let read = |text| read(text).map(Value::Object);
        let text = "mode=payment&line_items[0][quantity]=2&line_items[0][price_data][currency]=eur&metadata%5Border%5D=a+b%26";
        let expected = json!({
            "mode": "payment", "metadata": {"order": "a b&"},
            "line_items": {"0": {"quantity": "2", "price_data": {"currency": "eur"}}}
        });
        assert_eq!(read(text), Ok(expected));
        for bad in [
            "a[=1",
            "a[]]=1",
            "a[b]=1&a=2",
            "a=1&a[b]=2",
            "a[b]c=1",
            "=1",
            "a=1&a=2",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
