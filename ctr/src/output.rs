//! Everything this program prints: aligned tables, human sizes and ages.
//!
//! The columns are aligned as containerd's `ctr` aligns them, so that scripts written against
//! one read the other.
#![allow(clippy::print_stdout, reason = "the only module that prints")]

use std::fmt::Display;
use std::io::Write as _;
use std::time::Duration;

/// How the columns of a table are padded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Padding {
    /// At least four columns wide, four spaces between cells.
    Wide,
    /// One space between cells.
    Tight,
    /// Tab stops of eight columns.
    Tabs,
}

/// Rows of cells, printed with aligned columns.
#[derive(Debug)]
pub(crate) struct Table {
    padding: Padding,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table that starts with `header`.
    pub(crate) fn new<S: Into<String>>(
        padding: Padding,
        header: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut table = Self { padding, rows: Vec::new() };
        table.row(header);
        table
    }

    /// Adds one row. An empty last cell pads the cell before it, as a trailing tab would.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Writes the table to standard output.
    pub(crate) fn print(&self) {
        print(self.render());
    }

    /// The aligned text, one line per row.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(|row| row.len().saturating_sub(1)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.len().saturating_sub(1);
            for (column, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if column < last {
                    self.pad(&mut text, cell.chars().count(), widths[column]);
                }
            }
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let longest = self
            .rows
            .iter()
            .filter(|row| row.len() > column + 1)
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0);
        match self.padding {
            Padding::Wide => (longest + 4).max(4),
            Padding::Tight => longest + 1,
            Padding::Tabs => (longest + 1).div_ceil(8) * 8,
        }
    }

    fn pad(&self, text: &mut String, have: usize, want: usize) {
        match self.padding {
            Padding::Wide | Padding::Tight => text.extend((have..want).map(|_| ' ')),
            Padding::Tabs => text.extend((0..(want - have).div_ceil(8)).map(|_| '\t')),
        }
    }
}

/// Prints one line.
pub(crate) fn line(text: impl Display) {
    print(format!("{text}\n"));
}

/// Prints text as it is. A reader that went away ends the output, not the program.
pub(crate) fn print(text: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_ref()).is_ok() {
        // A closed pipe shows up here; there is nobody left to tell.
        let _ = out.flush();
    }
}

/// Prints why the program failed.
pub(crate) fn error(error: impl Display) {
    // A closed stream leaves nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "ctr: {error}");
}

/// Prints a warning beside the output.
pub(crate) fn warn(text: impl Display) {
    // A closed stream leaves nobody to warn.
    let _ = writeln!(std::io::stderr().lock(), "ctr: warning: {text}");
}

/// A size with binary units, as in `1011.4 KiB`.
pub(crate) fn size_binary(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], " ", |value| {
        format!("{value:.1}")
    })
}

/// A size with decimal units and four significant digits, as in `1.035MB`.
pub(crate) fn size_decimal(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], "", four_digits)
}

fn scaled(
    bytes: u64,
    base: f64,
    units: &[&str],
    gap: &str,
    show: impl Fn(f64) -> String,
) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with four digits")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{gap}{}", show(value), units[unit])
}

/// Four significant digits without trailing zeros.
fn four_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// How long ago something was, in words.
pub(crate) fn age(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..5400 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Labels as `key=value`, sorted and joined by commas; `-` when there are none.
pub(crate) fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<String> =
        labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_tables_pad_every_cell_but_the_last() {
        let mut table = Table::new(Padding::Wide, ["TASK", "PID", "STATUS", ""]);
        table.row(["x1", "10948", "RUNNING"]);
        assert_eq!(table.render(), "TASK    PID      STATUS    \nx1      10948    RUNNING\n");
    }

    #[test]
    fn tab_stops_align_as_a_terminal_shows_them() {
        let mut table = Table::new(Padding::Tabs, ["DIGEST", "SIZE"]);
        table.row(["sha256:".to_owned() + &"0".repeat(64), "405B".to_owned()]);
        assert!(table.render().starts_with(&format!("DIGEST{}SIZE\n", "\t".repeat(9))));
    }

    #[test]
    fn sizes_read_as_in_the_reference_client() {
        assert_eq!(size_binary(1_035_673), "1011.4 KiB");
        assert_eq!(size_binary(217), "217.0 B");
        assert_eq!(size_decimal(1_035_051), "1.035MB");
        assert_eq!(size_decimal(405), "405B");
    }

    #[test]
    fn ages_are_rounded_to_words() {
        assert_eq!(age(Duration::ZERO), "Less than a second");
        assert_eq!(age(Duration::from_secs(59)), "59 seconds");
        assert_eq!(age(Duration::from_secs(7200)), "2 hours");
        assert_eq!(age(Duration::from_secs(3 * 86_400)), "3 days");
    }
}
