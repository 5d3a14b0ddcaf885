//! The text itself: families, lines, labels and numbers, written one after the other into one string.
//!
//! It never knows what a number means, and nothing is formatted twice: what names a pipeline is written once for all of its
//! lines.
//!
//! Source: OpenMetrics 1.0, "Text format" (<https://prometheus.io/docs/specs/om/open_metrics_spec/#text-format>).

use std::fmt::Write;

use crate::shared::histogram::{BOUNDS_US, BUCKETS, Distribution};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

/// Names and values as they stand between the braces, without them.
#[derive(Clone, Debug, Default)]
pub struct Labels(String);

impl Labels {
    pub fn of(pairs: &[(&str, &str)]) -> Labels {
        let mut labels = Labels::default();
        for (name, value) in pairs {
            push_label(&mut labels.0, name, value);
        }
        labels
    }

    /// The same with one more.
    pub fn and(&self, name: &str, value: &str) -> Labels {
        let mut more = self.clone();
        push_label(&mut more.0, name, value);
        more
    }
}

/// The text so far.
pub struct Text(String);

impl Text {
    pub fn with_capacity(bytes: usize) -> Text {
        Text(String::with_capacity(bytes))
    }

    /// A family, whose lines follow; `unit` is added to its name.
    pub fn family<'a>(
        &'a mut self,
        name: &str,
        unit: Option<&str>,
        kind: Kind,
        help: &str,
    ) -> Lines<'a> {
        let name = match unit {
            Some(unit) => format!("{name}_{unit}"),
            None => name.to_owned(),
        };
        let out = &mut self.0;
        for (what, about) in [
            ("HELP", Some(help)),
            ("TYPE", Some(kind.as_str())),
            ("UNIT", unit),
        ] {
            if let Some(about) = about {
                out.push_str("# ");
                out.push_str(what);
                out.push(' ');
                out.push_str(&name);
                out.push(' ');
                push_escaped(out, about);
                out.push('\n');
            }
        }
        Lines { out, name }
    }

    pub fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

/// The lines of one family.
pub struct Lines<'a> {
    out: &'a mut String,
    name: String,
}

impl Lines<'_> {
    pub fn gauge(&mut self, labels: &Labels, value: f64) {
        self.begin("", labels);
        push_number(self.out, value);
        self.out.push('\n');
    }

    pub fn counter(&mut self, labels: &Labels, value: u64) {
        self.line("_total", labels, value);
    }

    /// Of what does not come in whole numbers.
    pub fn amount(&mut self, labels: &Labels, value: f64) {
        self.begin("_total", labels);
        push_number(self.out, value);
        self.out.push('\n');
    }

    pub fn info(&mut self, labels: &Labels) {
        self.line("_info", labels, 1);
    }

    /// Durations in seconds.
    pub fn histogram(&mut self, labels: &Labels, bounds: &Bounds, values: &Distribution) {
        self.begin("_sum", labels);
        push_number(self.out, values.sum_us as f64 / 1e6);
        self.out.push('\n');
        self.line("_count", labels, values.count());
        let mut so_far = 0;
        for (bound, count) in bounds.0.iter().zip(values.counts) {
            so_far += count;
            self.out.push_str(&self.name);
            self.out.push_str("_bucket{");
            if !labels.0.is_empty() {
                self.out.push_str(&labels.0);
                self.out.push(',');
            }
            self.out.push_str(bound);
            self.out.push_str("} ");
            push_integer(self.out, so_far);
            self.out.push('\n');
        }
    }

    fn line(&mut self, suffix: &str, labels: &Labels, value: u64) {
        self.begin(suffix, labels);
        push_integer(self.out, value);
        self.out.push('\n');
    }

    fn begin(&mut self, suffix: &str, labels: &Labels) {
        self.out.push_str(&self.name);
        self.out.push_str(suffix);
        if !labels.0.is_empty() {
            self.out.push('{');
            self.out.push_str(&labels.0);
            self.out.push('}');
        }
        self.out.push(' ');
    }
}

/// The label `le` of each bucket.
pub struct Bounds([String; BUCKETS]);

impl Bounds {
    pub fn new() -> Bounds {
        Bounds(std::array::from_fn(|bucket| {
            match BOUNDS_US.get(bucket) {
                // As floats are to be written here: 1.0, not 1.
                Some(us) => format!("le=\"{:?}\"", *us as f64 / 1e6),
                None => "le=\"+Inf\"".into(),
            }
        }))
    }
}

fn push_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    push_escaped(out, value);
    out.push('"');
}

fn push_escaped(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// Whole numbers as such: most are.
fn push_number(out: &mut String, value: f64) {
    const WHOLE: f64 = 9_007_199_254_740_992.0; // 2^53
    if value.fract() == 0.0 && (0.0..WHOLE).contains(&value) {
        return push_integer(out, value as u64);
    }
    let _ = match () {
        () if value == f64::INFINITY => write!(out, "+Inf"),
        () if value == f64::NEG_INFINITY => write!(out, "-Inf"),
        () => write!(out, "{value:?}"), // to a String: it does not fail
    };
}

fn push_integer(out: &mut String, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.push_str(str::from_utf8(&digits[from..]).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> String {
        let mut out = String::new();
        push_number(&mut out, value);
        out
    }

    #[test]
    fn numbers_are_written_in_full() {
        for (value, wanted) in [
            (0.0, "0"),
            (7.0, "7"),
            (-7.0, "-7.0"),
            (0.25, "0.25"),
            (2e-8, "2e-8"),
            (1e300, "1e300"),
            (9_007_199_254_740_991.0, "9007199254740991"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), wanted);
        }
        let mut out = String::new();
        push_integer(&mut out, u64::MAX);
        assert_eq!(out, u64::MAX.to_string());
    }

    #[test]
    fn a_family_is_described_and_its_lines_have_its_name_unit_and_escaped_labels() {
        let mut text = Text::with_capacity(0);
        let none = Labels::default();
        let odd = Labels::of(&[("database", "a\"b\\c\nd")]);
        let mut lines = text.family("x_log", Some("bytes"), Kind::Counter, "Of \"x\".");
        lines.counter(&none, 3);
        lines.amount(&odd.and("op", "insert"), 0.5);
        text.family("x_build", None, Kind::Info, "It.").info(&odd);
        assert_eq!(
            text.end(),
            "# HELP x_log_bytes Of \\\"x\\\".\n# TYPE x_log_bytes counter\n# UNIT x_log_bytes bytes\nx_log_bytes_total 3\n\
             x_log_bytes_total{database=\"a\\\"b\\\\c\\nd\",op=\"insert\"} 0.5\n\
             # HELP x_build It.\n# TYPE x_build info\nx_build_info{database=\"a\\\"b\\\\c\\nd\"} 1\n# EOF\n"
        );
    }

    #[test]
    fn buckets_count_all_up_to_their_bound() {
        let mut values = Distribution::default();
        values.counts[0] = 2;
        values.counts[9] = 3;
        values.counts[BUCKETS - 1] = 1;
        values.sum_us = 1_500_000;
        let mut text = Text::with_capacity(0);
        text.family("x", Some("seconds"), Kind::Histogram, "X.")
            .histogram(&Labels::of(&[("a", "b")]), &Bounds::new(), &values);
        let text = text.end();
        for line in [
            "x_seconds_sum{a=\"b\"} 1.5\n",
            "x_seconds_count{a=\"b\"} 6\n",
            "x_seconds_bucket{a=\"b\",le=\"0.001\"} 2\n",
            "x_seconds_bucket{a=\"b\",le=\"1.0\"} 5\n",
            "x_seconds_bucket{a=\"b\",le=\"86400.0\"} 5\n",
            "x_seconds_bucket{a=\"b\",le=\"+Inf\"} 6\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
