//! Vectors that are a function of the text, and the body that carries them. It knows nothing of connections.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// An embedding as it goes into an answer: what stands as its index, and its numbers.
pub type Item = (Value, Vec<f32>);

/// The right embeddings of these inputs.
pub fn items(model: &str, inputs: &[String], dimensions: usize) -> Vec<Item> {
    let numbered = inputs.iter().enumerate();
    numbered
        .map(|(index, input)| (json!(index), vector(model, input, dimensions)))
        .collect()
}

/// The body that answers `request` with these embeddings.
pub fn body(request: &Value, inputs: &[String], items: &[Item]) -> Value {
    let base64 = request["encoding_format"] == "base64";
    let data = items.iter().map(|(index, numbers)| {
        let embedding = if base64 {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            json!(STANDARD.encode(bytes))
        } else {
            json!(numbers)
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let data: Vec<Value> = data.collect();
    let tokens: usize = inputs.iter().map(|input| input.len().div_ceil(4)).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    json!({"object": "list", "model": request["model"], "data": data, "usage": usage})
}

/// A unit vector that is a function of model and text: others have other vectors.
pub fn vector(model: &str, text: &str, dimensions: usize) -> Vec<f32> {
    let bytes = model.bytes().chain(text.bytes());
    let mut state = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let numbers = (0..dimensions).map(|_| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    });
    let numbers: Vec<f32> = numbers.collect();
    let length = numbers
        .iter()
        .map(|number| number * number)
        .sum::<f32>()
        .sqrt();
    numbers.iter().map(|number| number / length).collect()
}
