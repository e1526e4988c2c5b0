//! Tables as kubectl prints them. Pure.

/// Columns as wide as their widest cell, three spaces apart; the last is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| {
        rows.iter()
            .filter_map(move |row| row.get(column))
            .map(|cell| cell.chars().count())
    };
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, name)| {
            cells(column)
                .chain([name.chars().count()])
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |row: &[String]| {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                text += cell;
            } else {
                text += &format!("{cell:<width$}   ", width = widths[column]);
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    rows.iter().fold(line(&head), |text, row| text + &line(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "ready".to_owned()],
            vec!["longer".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["NAME", "PHASE"], &rows),
            "NAME     PHASE\na        ready\nlonger\n"
        );
    }
}
