//! What nobody should send: something good with something wrong in it, drawn from a seed. Pure.

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// In characters: longer than anything that is asked for.
const LONG: usize = 5_000;
/// So deep a value is nested that whoever reads it by recursion has a long way.
const DEEP: usize = 200;

/// A source of it.
pub struct Garbage(StdRng);

impl Garbage {
    /// By a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// One of several.
    ///
    /// # Panics
    /// If there are none.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        all.choose(&mut self.0).unwrap()
    }

    /// Whether something happens that does so often.
    pub fn happens(&mut self, likely: f64) -> bool {
        self.0.random_bool(likely)
    }

    /// A text that may be none.
    pub fn text(&mut self) -> String {
        let texts = [
            String::new(),
            " ".to_owned(),
            "\u{0}".to_owned(),
            "a\u{0}b".to_owned(),
            "\u{202e}\u{feff}\u{1F9FE}".to_owned(),
            "'; DROP TABLE shop.orders; --".to_owned(),
            "../../etc/passwd".to_owned(),
            "%00%ff".to_owned(),
            "{{7*7}}${7*7}".to_owned(),
            "4242 4242 4242 4242".to_owned(),
            "-1".to_owned(),
            "9223372036854775808".to_owned(),
            "00000000-0000-0000-0000-000000000000".to_owned(),
            "x".repeat(LONG),
        ];
        self.one_of(&texts).clone()
    }

    fn value(&mut self) -> Value {
        let mut deep = json!([]);
        // Only now and then: it is long.
        if self.happens(0.1) {
            for _ in 0..DEEP {
                deep = json!([deep]);
            }
        }
        let values = [
            Value::Null,
            json!(true),
            json!(-1),
            json!(0),
            json!(1.5),
            json!(1e308),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!({}),
            json!([{}]),
            deep,
            Value::String(self.text()),
        ];
        self.one_of(&values).clone()
    }

    /// The same with something in it otherwise: a part taken away, told twice, or replaced. Mostly it is one thing, that the rest be understood.
    ///
    /// # Panics
    /// Never: there is something wherever it looks.
    pub fn of(&mut self, good: &Value) -> Value {
        let mut changed = good.clone();
        let times = if self.happens(0.8) { 1 } else { 3 };
        for _ in 0..times {
            let mut all = vec![];
            pointers(&changed, String::new(), &mut all);
            let place = self.one_of(&all).clone();
            self.spoil(changed.pointer_mut(&place).unwrap());
        }
        changed
    }

    fn spoil(&mut self, value: &mut Value) {
        let is_changed_inside = self.happens(0.5);
        match value {
            Value::Object(fields) if is_changed_inside => {
                let names: Vec<_> = fields.keys().cloned().collect();
                if names.is_empty() || self.happens(0.5) {
                    let (name, value) = (self.text(), self.value());
                    fields.insert(name, value);
                } else {
                    fields.remove(self.one_of(&names));
                }
            }
            Value::Array(all) if is_changed_inside => all.extend_from_within(..),
            Value::String(text) if self.happens(0.8) => *text = self.text(),
            _ => *value = self.value(),
        }
    }

    /// Bytes that were something good once.
    pub fn bytes(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..self.0.random_range(1..=4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.0.random_range(0..bytes.len());
            match self.0.random_range(0..5) {
                0 => bytes.truncate(at),
                1 => bytes[at] = self.0.random(),
                2 => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.0.random()),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }
}

/// Where everything in a value is (RFC 6901).
fn pointers(value: &Value, place: String, all: &mut Vec<String>) {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                pointers(value, format!("{place}/{}", escaped(name)), all);
            }
        }
        Value::Array(values) => {
            for (number, value) in values.iter().enumerate() {
                pointers(value, format!("{place}/{number}"), all);
            }
        }
        _ => {}
    }
    all.push(place);
}
