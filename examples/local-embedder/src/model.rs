//! The model's folder: its tokenizer and its weights, checked against what this server promises.
//! It never fetches anything.

use std::path::Path;

use tokenizers::{Tokenizer, TruncationParams};

use crate::bert::{Bert, Config};
use crate::request::DIMENSIONS;

/// The most tokens of a text that the model reads, the two at its ends counted: it was trained on
/// no longer ones.
const MAX_TOKENS: usize = 256;

/// Turns texts into tokens.
pub struct TextTokenizer(Tokenizer);

/// Reads `config.json`, `tokenizer.json` and `model.safetensors` from `folder`.
pub fn load(folder: &Path) -> Result<(TextTokenizer, Bert), String> {
    let failed =
        |file: &Path, why: &dyn std::fmt::Display| format!("cannot read {}: {why}", file.display());

    let file = folder.join("config.json");
    let text = std::fs::read(&file).map_err(|e| failed(&file, &e))?;
    let config: Config = serde_json::from_slice(&text).map_err(|e| failed(&file, &e))?;
    if config.hidden_size != DIMENSIONS || config.max_position_embeddings < MAX_TOKENS {
        return Err(failed(&file, &"this is not all-MiniLM-L6-v2"));
    }

    let file = folder.join("tokenizer.json");
    let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| failed(&file, &e))?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(Some(TruncationParams {
            max_length: MAX_TOKENS,
            ..TruncationParams::default()
        }))
        .map_err(|e| failed(&file, &e))?;

    let file = folder.join("model.safetensors");
    let bert = Bert::load(&file, &config).map_err(|e| failed(&file, &e))?;
    Ok((TextTokenizer(tokenizer), bert))
}

impl TextTokenizer {
    /// The tokens of `text`, cut off after [`MAX_TOKENS`]; never none.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self
            .0
            .encode_fast(text, true)
            .map_err(|e| format!("cannot tokenize a text: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }
}
