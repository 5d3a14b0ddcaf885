//! Every figure of the run. It never forgets one: what is compared or drawn is looked up here.

use std::fmt::Write;

use crate::bench::setting::{keep, percentile};

struct Figure {
    part: &'static str,
    variant: String,
    measure: &'static str,
    value: f64,
}

#[derive(Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    pub fn add(
        &mut self,
        part: &'static str,
        variant: impl Into<String>,
        measure: &'static str,
        value: f64,
    ) {
        self.0.push(Figure {
            part,
            variant: variant.into(),
            measure,
            value,
        });
    }

    /// Whether this part was run.
    pub fn has(&self, part: &str) -> bool {
        self.0.iter().any(|figure| figure.part == part)
    }

    /// Those of a part, in the order in which they came.
    pub fn variants(&self, part: &str) -> Vec<String> {
        let mut variants = Vec::new();
        for one in self.0.iter().filter(|one| one.part == part) {
            if !variants.contains(&one.variant) {
                variants.push(one.variant.clone());
            }
        }
        variants
    }

    /// In ascending order.
    pub fn all(&self, part: &str, variant: &str, measure: &str) -> Vec<f64> {
        let wanted =
            |one: &&Figure| one.part == part && one.variant == variant && one.measure == measure;
        let mut values: Vec<f64> = self.0.iter().filter(wanted).map(|one| one.value).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// NaN where there is none.
    pub fn percentile(&self, part: &str, variant: &str, measure: &str, percent: usize) -> f64 {
        percentile(&self.all(part, variant, measure), percent)
    }

    /// The only one, or the middle one; NaN where there is none.
    pub fn one(&self, part: &str, variant: &str, measure: &str) -> f64 {
        self.percentile(part, variant, measure, 50)
    }

    /// Writes all of them to target/bench/embed.csv and says where that is.
    pub fn write_csv(&self) -> String {
        let mut csv = "part,variant,measure,value\n".to_owned();
        for Figure {
            part,
            variant,
            measure,
            value,
        } in &self.0
        {
            writeln!(csv, "{part},\"{variant}\",\"{measure}\",{value}").unwrap();
        }
        format!("each figure: {}", keep("embed.csv", &csv).display())
    }
}
