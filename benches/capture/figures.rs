//! Every figure of the run and what is made of them: medians over the rounds. A variant is compared with another one
//! of the same round, so that what else the machine did then falls on both.

use std::fmt::Write;

use crate::bench::setting::keep;

/// One measurement. What it did not look at is NaN.
#[derive(Clone, Copy)]
pub struct Figure {
    pub workload: &'static str,
    pub variant: &'static str,
    /// 0: to warm up; it is kept and counts for nothing.
    pub round: usize,
    /// Rows, updates or transactions.
    pub units: usize,
    pub wall_s: f64,
    /// Of the backends that wrote, or of the worker that read.
    pub cpu_s: f64,
    pub wal_bytes: f64,
    /// Of recsync's worker meanwhile.
    pub worker_cpu_s: f64,
}

impl Figure {
    pub fn new(
        workload: &'static str,
        variant: &'static str,
        round: usize,
        units: usize,
    ) -> Figure {
        Figure {
            workload,
            variant,
            round,
            units,
            wall_s: f64::NAN,
            cpu_s: f64::NAN,
            wal_bytes: f64::NAN,
            worker_cpu_s: f64::NAN,
        }
    }
}

/// Something of a figure, for one row, update or transaction of it.
pub type Measure = fn(&Figure) -> f64;

pub const CPU_US: Measure = |figure| figure.cpu_s * 1e6 / figure.units as f64;
pub const WALL_US: Measure = |figure| figure.wall_s * 1e6 / figure.units as f64;
pub const WAL_BYTES: Measure = |figure| figure.wal_bytes / figure.units as f64;
pub const WORKER_US: Measure = |figure| figure.worker_cpu_s * 1e6 / figure.units as f64;
pub const PER_SECOND: Measure = |figure| figure.units as f64 / figure.wall_s;
pub const PER_CPU_SECOND: Measure = |figure| figure.units as f64 / figure.cpu_s;

#[derive(Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    pub fn add(&mut self, figure: Figure) {
        self.0.push(figure);
    }

    /// Whether this workload was run.
    pub fn has(&self, workload: &str) -> bool {
        self.0.iter().any(|figure| figure.workload == workload)
    }

    pub fn median(&self, workload: &str, variant: &str, measure: Measure) -> f64 {
        median(self.of(workload, variant).map(measure).collect())
    }

    /// In ascending order.
    pub fn all(&self, workload: &str, variant: &str, measure: Measure) -> Vec<f64> {
        let mut all: Vec<f64> = self.of(workload, variant).map(measure).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// What `variant` has more than `base`.
    pub fn added(&self, workload: &str, variant: &str, base: &str, measure: Measure) -> f64 {
        self.compared(workload, variant, base, |one, other| {
            measure(one) - measure(other)
        })
    }

    /// How many times `base` the figure of `variant` is.
    pub fn ratio(&self, workload: &str, variant: &str, base: &str, measure: Measure) -> f64 {
        self.compared(workload, variant, base, |one, other| {
            measure(one) / measure(other)
        })
    }

    fn compared(
        &self,
        workload: &str,
        variant: &str,
        base: &str,
        compare: impl Fn(&Figure, &Figure) -> f64,
    ) -> f64 {
        let pairs = self.of(workload, variant).filter_map(|one| {
            let other = self
                .of(workload, base)
                .find(|other| other.round == one.round)?;
            Some(compare(one, other))
        });
        median(pairs.collect())
    }

    fn of(&self, workload: &str, variant: &str) -> impl Iterator<Item = &Figure> {
        self.0.iter().filter(move |figure| {
            figure.workload == workload && figure.variant == variant && figure.round > 0
        })
    }

    /// Writes all of them to target/bench/capture.csv and says where that is.
    pub fn write_csv(&self) -> String {
        let mut csv =
            "workload,variant,round,units,wall_s,cpu_s,wal_bytes,worker_cpu_s\n".to_owned();
        for one in &self.0 {
            let (workload, variant) = (one.workload, one.variant);
            write!(
                csv,
                "\"{workload}\",\"{variant}\",{},{}",
                one.round, one.units
            )
            .unwrap();
            for number in [one.wall_s, one.cpu_s, one.wal_bytes, one.worker_cpu_s] {
                match number.is_nan() {
                    true => csv.push(','),
                    false => write!(csv, ",{number}").unwrap(),
                }
            }
            csv.push('\n');
        }
        format!("each measurement: {}", keep("capture.csv", &csv).display())
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match (numbers.get(middle), numbers.len() % 2) {
        (None, _) => f64::NAN,
        (Some(number), 1) => *number,
        (Some(number), _) => (numbers[middle - 1] + number) / 2.0,
    }
}
