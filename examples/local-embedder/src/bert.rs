//! BERT's encoder (Devlin et al., 2018) with mean pooling, as Sentence-BERT has it (Reimers and
//! Gurevych, 2019). The texts of one pass lie end to end in one matrix, so none is ever padded and
//! no mask is needed; only the attention goes text by text. candle multiplies the matrices.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use serde::Deserialize;

use crate::kernels::{self, Norm};

/// What `config.json` says of the model's shape.
#[derive(Debug, Deserialize)]
pub struct Config {
    pub hidden_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
    pub max_position_embeddings: usize,
    pub model_type: String,
    pub num_attention_heads: usize,
    pub num_hidden_layers: usize,
}

/// The model's weights.
pub struct Bert {
    width: usize,
    heads: usize,
    /// One row of `width` for each token.
    words: Vec<f32>,
    /// One row of `width` for each position, with the row of token type 0 already added.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    /// Query, key and value in one product, the query already divided by the root of a head's
    /// width.
    attention: Dense,
    attention_output: Dense,
    attention_norm: Norm,
    intermediate: Dense,
    output: Dense,
    output_norm: Norm,
}

struct Dense {
    /// inputs × outputs
    weight: Tensor,
    bias: Vec<f32>,
}

impl Bert {
    /// Reads the weights of `model.safetensors`.
    ///
    /// # Errors
    /// A file that cannot be read, or that lacks a weight of a BERT of this shape.
    pub fn load(file: &Path, config: &Config) -> Result<Self> {
        if config.model_type != "bert" || config.hidden_act != "gelu" {
            bail!(
                "not a BERT with gelu, but {} with {}",
                config.model_type,
                config.hidden_act
            );
        }
        let weights = Weights {
            tensors: candle_core::safetensors::load(file, &Device::Cpu)?,
            width: config.hidden_size,
            epsilon: config.layer_norm_eps,
        };
        let head_width = config.hidden_size / config.num_attention_heads;
        let layers = (0..config.num_hidden_layers)
            .map(|n| Layer::load(&weights, &format!("encoder.layer.{n}"), head_width))
            .collect::<Result<_>>()?;
        let mut positions = weights.floats("embeddings.position_embeddings.weight")?;
        if positions.len() != config.max_position_embeddings * config.hidden_size {
            bail!("the table of positions has another size than config.json says");
        }
        let types = weights.floats("embeddings.token_type_embeddings.weight")?;
        kernels::add_bias(&mut positions, &types[..config.hidden_size]);
        Ok(Self {
            width: config.hidden_size,
            heads: config.num_attention_heads,
            words: weights.floats("embeddings.word_embeddings.weight")?,
            positions,
            norm: weights.norm("embeddings.LayerNorm")?,
            layers,
        })
    }

    /// The embeddings of `texts`, given as tokens: one vector of length 1 for each.
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut x = self.look_up(texts)?;
        for layer in &self.layers {
            x = layer.forward(&x, texts, self.heads)?;
        }
        let rows = x.flatten_all()?.to_vec1::<f32>()?;
        let mut start = 0;
        Ok(texts
            .iter()
            .map(|text| {
                let end = start + text.len() * self.width;
                let pooled = kernels::pool(&rows[start..end], self.width);
                start = end;
                pooled
            })
            .collect())
    }

    /// The first layer's input: a row for each token of each text.
    fn look_up(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let total: usize = texts.iter().map(|text| text.len()).sum();
        let mut rows = Vec::with_capacity(total * self.width);
        for text in texts {
            for (token, position) in text.iter().zip(self.positions.chunks_exact(self.width)) {
                let start = *token as usize * self.width;
                let Some(word) = self.words.get(start..start + self.width) else {
                    bail!("token {token} is not in the model's vocabulary");
                };
                let row = rows.len();
                rows.extend(word.iter().zip(position).map(|(w, p)| w + p));
                self.norm.apply(&mut rows[row..]);
            }
        }
        if rows.len() != total * self.width {
            bail!("a text has more tokens than the model has positions");
        }
        Tensor::from_vec(rows, (total, self.width), &Device::Cpu)
    }
}

impl Layer {
    fn load(weights: &Weights, name: &str, head_width: usize) -> Result<Self> {
        Ok(Self {
            attention: weights.attention(&format!("{name}.attention.self"), head_width)?,
            attention_output: weights.dense(&format!("{name}.attention.output.dense"))?,
            attention_norm: weights.norm(&format!("{name}.attention.output.LayerNorm"))?,
            intermediate: weights.dense(&format!("{name}.intermediate.dense"))?,
            output: weights.dense(&format!("{name}.output.dense"))?,
            output_norm: weights.norm(&format!("{name}.output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, texts: &[&[u32]], heads: usize) -> Result<Tensor> {
        let context = attend(&self.attention.forward(x, kernels::add_bias)?, texts, heads)?;
        let x = self
            .attention_output
            .forward_and_norm(&context, x, &self.attention_norm)?;
        let wide = self.intermediate.forward(&x, kernels::add_bias_gelu)?;
        self.output.forward_and_norm(&wide, &x, &self.output_norm)
    }
}

/// Attention within each text: from rows of query, key and value to rows of context.
fn attend(qkv: &Tensor, texts: &[&[u32]], heads: usize) -> Result<Tensor> {
    let head_width = qkv.dim(1)? / (3 * heads);
    let mut start = 0;
    let mut contexts = Vec::with_capacity(texts.len());
    for text in texts {
        let length = text.len();
        let by_head = qkv
            .narrow(0, start, length)?
            .reshape((length, 3 * heads, head_width))?
            .transpose(0, 1)?;
        let [q, k, v] = [0, 1, 2].map(|part| by_head.narrow(0, part * heads, heads));
        let scores = q?.matmul(&k?.t()?)?;
        scores.inplace_op1(&InPlace(|rows: &mut [f32]| kernels::softmax(rows, length)))?;
        let context = scores.matmul(&v?)?.transpose(0, 1)?;
        contexts.push(context.reshape((length, heads * head_width))?);
        start += length;
    }
    Tensor::cat(&contexts, 0)
}

impl Dense {
    /// `finish(x · weight, bias)`.
    fn forward(&self, x: &Tensor, finish: impl Fn(&mut [f32], &[f32])) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?;
        y.inplace_op1(&InPlace(|rows: &mut [f32]| finish(rows, &self.bias)))?;
        Ok(y)
    }

    /// `norm(x · weight + bias + residual)`.
    fn forward_and_norm(&self, x: &Tensor, residual: &Tensor, norm: &Norm) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?;
        let add_and_norm = |rows: &mut [f32], residual: &[f32]| {
            kernels::add_and_norm(rows, &self.bias, residual, norm);
        };
        y.inplace_op2(residual, &InPlace(add_and_norm))?;
        Ok(y)
    }
}

/// A kernel as candle's in-place operation.
struct InPlace<F>(F);

impl<F: Fn(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0)(floats_mut(storage, layout)?);
        Ok(())
    }
}

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = other_layout.contiguous_offsets() else {
            bail!("rows are not contiguous");
        };
        let other = &other.as_slice::<f32>()?[start..end];
        (self.0)(floats_mut(storage, layout)?, other);
        Ok(())
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(floats), Some((start, end))) => Ok(&mut floats[start..end]),
        _ => bail!("rows are not contiguous floats"),
    }
}

/// The weights of `model.safetensors` by name.
struct Weights {
    tensors: HashMap<String, Tensor>,
    width: usize,
    epsilon: f32,
}

impl Weights {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("the model has no {name}"),
        }
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        self.tensor(name)?.flatten_all()?.to_vec1()
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let norm = Norm {
            gain: self.floats(&format!("{name}.weight"))?,
            shift: self.floats(&format!("{name}.bias"))?,
            epsilon: self.epsilon,
        };
        if norm.gain.len() != self.width || norm.shift.len() != self.width {
            bail!("{name} is not {} wide", self.width);
        }
        Ok(norm)
    }

    fn dense(&self, name: &str) -> Result<Dense> {
        Ok(Dense {
            weight: self.tensor(&format!("{name}.weight"))?.t()?,
            bias: self.floats(&format!("{name}.bias"))?,
        })
    }

    fn attention(&self, name: &str, head_width: usize) -> Result<Dense> {
        let scale = 1.0 / (head_width as f64).sqrt();
        let tensor = |part: &str| self.tensor(&format!("{name}.{part}"));
        let join = |member: &str| {
            let query = (tensor(&format!("query.{member}"))? * scale)?;
            let key = tensor(&format!("key.{member}"))?;
            let value = tensor(&format!("value.{member}"))?;
            Tensor::cat(&[&query, key, value], 0)
        };
        Ok(Dense {
            weight: join("weight")?.t()?,
            bias: join("bias")?.to_vec1()?,
        })
    }
}
