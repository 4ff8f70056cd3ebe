//! Medians, spread, and text tables.

use serde::Serialize;

/// The middle of several runs and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle value (the mean of the two middle ones of an even number).
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Sums up values; nothing when there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: low.midpoint(high), min, max })
    }

    /// Half the distance between the extremes, in parts of the median.
    pub(crate) fn spread(self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median }
    }
}

/// A Markdown table: the first row is the head; numbers to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        out.push('|');
        for (column, width) in widths.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let padded = if column == 0 {
                format!(" {cell:<width$} |")
            } else {
                format!(" {cell:>width$} |")
            };
            out.push_str(&padded);
        }
        out.push('\n');
        if number == 0 {
            out.push('|');
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                out.push_str(&if column == 0 {
                    format!(":{dashes}|")
                } else {
                    format!("{dashes}:|")
                });
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_an_odd_number_and_between_two_of_an_even() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([9.0, 10.0, 11.0]).unwrap().spread(), 0.1);
    }

    #[test]
    fn a_table_is_markdown() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long name".into(), "1".into()]];
        assert_eq!(table(&rows), "| a         |   b |\n|:----------|----:|\n| long name |   1 |\n");
    }
}
