//! The bodies of answers that are not refusals. It never changes a value: a float reads back as
//! the very same float in both encodings.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;

use crate::request::{Encoding, MODEL};

#[derive(Serialize)]
struct Answer {
    object: &'static str,
    data: Vec<Item>,
    model: &'static str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The answer to `POST /v1/embeddings`, embeddings in the order of the inputs.
pub fn embeddings(
    embeddings: Vec<Vec<f32>>,
    tokens: usize,
    encoding: Encoding,
) -> Result<String, serde_json::Error> {
    let data = embeddings
        .into_iter()
        .enumerate()
        .map(|(index, embedding)| Item {
            object: "embedding",
            index,
            embedding: encode(embedding, encoding),
        })
        .collect();
    serde_json::to_string(&Answer {
        object: "list",
        data,
        model: MODEL,
        usage: Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        },
    })
}

fn encode(embedding: Vec<f32>, encoding: Encoding) -> Embedding {
    match encoding {
        Encoding::Float => Embedding::Float(embedding),
        Encoding::Base64 => {
            let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
            Embedding::Base64(STANDARD.encode(bytes))
        }
    }
}

/// The answer to `GET /v1/models`.
pub fn models() -> String {
    json!({ "object": "list", "data": [{
        "id": MODEL, "object": "model", "created": 0, "owned_by": "local-embedder",
    }]})
    .to_string()
}

/// The answer to `GET /stats`: what was embedded since the start.
pub fn stats(requests: u64, inputs: u64, tokens: u64) -> String {
    json!({ "requests": requests, "inputs": inputs, "tokens": tokens }).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn answer(encoding: Encoding) -> Value {
        let vectors = vec![
            vec![0.1, -1.0e-8, 3.0],
            vec![f32::MIN_POSITIVE, 1.0 / 3.0, 0.0],
        ];
        serde_json::from_str(&embeddings(vectors, 7, encoding).unwrap()).unwrap()
    }

    #[test]
    fn the_shape_is_the_real_apis() {
        let answer = answer(Encoding::Float);
        assert_eq!(answer["object"], "list");
        assert_eq!(answer["model"], MODEL);
        assert_eq!(
            answer["usage"],
            json!({"prompt_tokens": 7, "total_tokens": 7})
        );
        assert_eq!(answer["data"][1]["index"], 1);
        assert_eq!(answer["data"][1]["object"], "embedding");
    }

    #[test]
    fn both_encodings_give_the_same_floats() {
        let (floats, encoded) = (answer(Encoding::Float), answer(Encoding::Base64));
        for item in 0..2 {
            let floats: Vec<f32> =
                serde_json::from_value(floats["data"][item]["embedding"].clone()).unwrap();
            let text = encoded["data"][item]["embedding"].as_str().unwrap();
            let bytes = STANDARD.decode(text).unwrap();
            let decoded: Vec<f32> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            assert_eq!(floats, decoded);
        }
    }
}
