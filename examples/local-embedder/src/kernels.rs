//! The arithmetic between the matrix products, on plain slices of rows: one pass over memory each,
//! in loops that the compiler turns into SIMD. It never allocates and never starts a thread.

/// Lanes of the sums: as many as keep an 8-float register busy without reordering by the compiler.
const LANES: usize = 8;

/// Adds `bias` to every row of `rows`.
pub fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (x, b) in row.iter_mut().zip(bias) {
            *x += b;
        }
    }
}

/// `gelu(row + bias)` for every row, the exact form: `x / 2 * (1 + erf(x / sqrt 2))`
/// (Hendrycks and Gimpel, 2016).
pub fn add_bias_gelu(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (x, b) in row.iter_mut().zip(bias) {
            let v = *x + b;
            *x = 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// `layer_norm(row + bias + residual)` for every row.
pub fn add_and_norm(rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm) {
    let width = bias.len();
    for (row, residual) in rows
        .chunks_exact_mut(width)
        .zip(residual.chunks_exact(width))
    {
        for ((x, b), r) in row.iter_mut().zip(bias).zip(residual) {
            *x += b + r;
        }
        norm.apply(row);
    }
}

/// A layer normalisation (Ba, Kiros and Hinton, 2016).
pub struct Norm {
    pub gain: Vec<f32>,
    pub shift: Vec<f32>,
    pub epsilon: f32,
}

impl Norm {
    /// Normalises one row in place.
    pub fn apply(&self, row: &mut [f32]) {
        let n = row.len() as f32;
        let mean = sum(row, |x| x) / n;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, g), s) in row.iter_mut().zip(&self.gain).zip(&self.shift) {
            *x = (*x - mean) * scale * g + s;
        }
    }
}

/// The softmax of every row of `width` numbers.
pub fn softmax(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let scale = 1.0 / sum(row, |x| x);
        for x in row.iter_mut() {
            *x *= scale;
        }
    }
}

/// The mean of the rows, scaled to length 1.
pub fn pool(rows: &[f32], width: usize) -> Vec<f32> {
    let mut pooled = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in pooled.iter_mut().zip(row) {
            *sum += x;
        }
    }
    // The mean's divisor cancels out in the scaling.
    let length = sum(&pooled, |x| x * x).sqrt();
    let scale = 1.0 / length.max(f32::MIN_POSITIVE);
    for x in &mut pooled {
        *x *= scale;
    }
    pooled
}

fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

/// The error function to 5e-7: the rational minimax approximation on [-4, 4] that Eigen uses; a
/// float's erf is ±1 outside.
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let y = x * x;
    let p = -2.726_142_3e-10_f32;
    let p = p * y + 2.770_681_4e-8;
    let p = p * y - 2.101_024e-6;
    let p = p * y - 5.692_506_4e-5;
    let p = p * y - 7.349_906_5e-4;
    let p = p * y - 2.954_6e-3;
    let p = p * y - 1.609_603_3e-2;
    let q = -1.456_607_2e-5_f32;
    let q = q * y - 2.133_740_6e-4;
    let q = q * y - 1.682_827e-3;
    let q = q * y - 7.373_329_3e-3;
    let q = q * y - 1.426_473_9e-2;
    x * p / q
}

/// `e^x` for `x` ≤ 0 to 2e-7 of its value: a power of two by the exponent's bits, the rest by
/// Cephes' polynomial. Under -87 it stays at e^-87.
fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_2e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let e = p * r * r + r + 1.0;
    e * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its Maclaurin series.
    fn exact_erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn erf_is_exact_to_float_precision() {
        for i in -4000..=4000 {
            let x = i as f32 / 1000.0;
            let error = f64::from(erf(x)) - exact_erf(f64::from(x));
            assert!(error.abs() < 5e-7, "erf({x}) is off by {error}");
        }
        assert!((erf(50.0) - 1.0).abs() < 5e-7);
        assert!((erf(-50.0) + 1.0).abs() < 5e-7);
    }

    #[test]
    fn exp_is_exact_to_float_precision() {
        for i in 0..=8600 {
            let x = i as f32 / -100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact) / exact;
            assert!(error.abs() < 2e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn a_softmax_adds_up_to_one() {
        let mut rows = [1.0, 2.0, 3.0, -1000.0, 0.0, 1000.0];
        softmax(&mut rows, 3);
        assert!((rows[0] - 0.090_030_57).abs() < 1e-6);
        assert!((rows[2] - 0.665_240_94).abs() < 1e-6);
        assert_eq!(&rows[4..], [rows[4], 1.0]);
        assert!(rows[4] < 1e-30);
    }

    #[test]
    fn a_normalised_row_has_mean_zero_and_variance_one() {
        let norm = Norm {
            gain: vec![1.0; 11],
            shift: vec![0.0; 11],
            epsilon: 1e-12,
        };
        let mut row: Vec<f32> = (0..11).map(|x| x as f32).collect();
        norm.apply(&mut row);
        let mean = row.iter().sum::<f32>() / 11.0;
        let variance = row.iter().map(|x| x * x).sum::<f32>() / 11.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
    }

    #[test]
    fn pooling_gives_the_mean_direction() {
        assert_eq!(pool(&[1.0, 5.0, 5.0, 3.0], 2), [0.6, 0.8]);
    }
}
