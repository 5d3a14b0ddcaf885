//! The body of `POST /v1/embeddings`: what the real API would refuse is refused here, with the
//! same status and the member at fault. It never reads the model.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The model's name, as answers give it; requests may write it in any case.
pub const MODEL: &str = "all-MiniLM-L6-v2";

/// The width of every embedding.
pub const DIMENSIONS: usize = 384;

/// The most inputs of one request, as in the real API.
pub const MAX_INPUTS: usize = 2048;

const MEMBERS: [&str; 5] = ["input", "model", "encoding_format", "dimensions", "user"];

/// How embeddings are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Encoding {
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

/// A request that is in order.
#[derive(Debug, PartialEq)]
pub struct EmbeddingRequest {
    /// 1 to [`MAX_INPUTS`] texts, none of them empty.
    pub inputs: Vec<String>,
    pub encoding: Encoding,
}

/// Reads and checks a request's body.
///
/// # Errors
/// 400 with the member at fault; 404 for a model that is not this one.
pub fn parse(body: &[u8]) -> Result<EmbeddingRequest, ApiError> {
    let mut members = match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => members,
        Ok(_) => return Err(not_json("it is not an object")),
        Err(e) => return Err(not_json(&e.to_string())),
    };
    if let Some(unknown) = members.keys().find(|k| !MEMBERS.contains(&k.as_str())) {
        let message = format!("Unrecognized request argument supplied: {unknown}");
        return Err(ApiError::refused(400, None, message));
    }
    check_model(&members)?;
    check_dimensions(&members)?;
    check_user(&members)?;
    Ok(EmbeddingRequest {
        encoding: encoding(&members)?,
        inputs: inputs(members.remove("input"))?,
    })
}

fn not_json(why: &str) -> ApiError {
    let message = format!("We could not parse the JSON body of your request: {why}.");
    ApiError::refused(400, None, message)
}

fn check_model(members: &Map<String, Value>) -> Result<(), ApiError> {
    match members.get("model") {
        Some(Value::String(name)) if name.eq_ignore_ascii_case(MODEL) => Ok(()),
        Some(Value::String(name)) if !name.is_empty() => {
            let message =
                format!("The model `{name}` does not exist; this server has only `{MODEL}`.");
            Err(ApiError {
                param: Some("model"),
                ..ApiError::refused(404, Some("model_not_found"), message)
            })
        }
        None | Some(Value::Null | Value::String(_)) => Err(ApiError::invalid(
            "model",
            "You must provide a model parameter.",
        )),
        Some(_) => Err(ApiError::invalid("model", "'model' must be a string.")),
    }
}

fn check_dimensions(members: &Map<String, Value>) -> Result<(), ApiError> {
    match members.get("dimensions") {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value.as_u64() == Some(DIMENSIONS as u64) => Ok(()),
        Some(_) => Err(ApiError::invalid(
            "dimensions",
            format!("'dimensions' must be {DIMENSIONS} or absent: this model has no other width."),
        )),
    }
}

fn check_user(members: &Map<String, Value>) -> Result<(), ApiError> {
    match members.get("user") {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(_) => Err(ApiError::invalid("user", "'user' must be a string.")),
    }
}

fn encoding(members: &Map<String, Value>) -> Result<Encoding, ApiError> {
    match members.get("encoding_format") {
        None | Some(Value::Null) => Ok(Encoding::Float),
        Some(Value::String(name)) if name == "float" => Ok(Encoding::Float),
        Some(Value::String(name)) if name == "base64" => Ok(Encoding::Base64),
        Some(_) => Err(ApiError::invalid(
            "encoding_format",
            "'encoding_format' must be 'float' or 'base64'.",
        )),
    }
}

fn inputs(input: Option<Value>) -> Result<Vec<String>, ApiError> {
    let refused = |message: String| Err(ApiError::invalid("input", message));
    let values = match input {
        None | Some(Value::Null) => return refused("You must provide 'input'.".into()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.is_empty() || values.len() > MAX_INPUTS {
        return refused(format!(
            "'input' must hold 1 to {MAX_INPUTS} texts, but holds {}.",
            values.len()
        ));
    }
    let mut inputs = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        match value {
            Value::String(text) if text.is_empty() => {
                return refused(format!("'input' must not be empty (text {index})."));
            }
            Value::String(text) => inputs.push(text),
            Value::Number(_) | Value::Array(_) => {
                return refused("'input' must be text: this server takes no token arrays.".into());
            }
            _ => {
                return refused(format!(
                    "'input' must be a string or an array of strings (text {index})."
                ));
            }
        }
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse_value(body: Value) -> Result<EmbeddingRequest, ApiError> {
        parse(body.to_string().as_bytes())
    }

    fn refusal(body: Value) -> (u16, Option<&'static str>) {
        let shown = body.to_string();
        let error = parse_value(body).expect_err(&shown);
        (error.status, error.param)
    }

    #[test]
    fn a_text_and_an_array_of_texts_are_taken() {
        let one = parse_value(json!({"model": MODEL, "input": "a dog"})).unwrap();
        assert_eq!(one.inputs, ["a dog"]);
        assert_eq!(one.encoding, Encoding::Float);
        let two = parse_value(json!({
            "model": "all-minilm-l6-v2", "input": ["a", "b"], "user": "u",
            "encoding_format": "base64", "dimensions": 384,
        }))
        .unwrap();
        assert_eq!(two.inputs, ["a", "b"]);
        assert_eq!(two.encoding, Encoding::Base64);
    }

    #[test]
    fn the_most_inputs_are_2048() {
        let with = |n: usize| json!({"model": MODEL, "input": vec!["x"; n]});
        assert_eq!(parse_value(with(2048)).unwrap().inputs.len(), 2048);
        assert_eq!(refusal(with(2049)), (400, Some("input")));
    }

    #[test]
    fn a_wrong_input_is_refused_by_name() {
        let wrong = [
            json!(null),
            json!(""),
            json!([]),
            json!(["a", ""]),
            json!(["a", null]),
            json!(["a", 1]),
            json!([1, 2, 3]),
            json!([[1, 2], [3]]),
            json!(7),
            json!({"text": "a"}),
            json!(true),
        ];
        for input in wrong {
            let body = json!({"model": MODEL, "input": input});
            assert_eq!(refusal(body), (400, Some("input")));
        }
        assert_eq!(refusal(json!({"model": MODEL})), (400, Some("input")));
    }

    #[test]
    fn token_arrays_are_refused_with_the_reason() {
        let error = parse_value(json!({"model": MODEL, "input": [1, 2]})).unwrap_err();
        assert!(error.message.contains("token arrays"), "{}", error.message);
    }

    #[test]
    fn another_model_is_not_found() {
        let error = parse_value(json!({"model": "gpt", "input": "a"})).unwrap_err();
        assert_eq!((error.status, error.code), (404, Some("model_not_found")));
        for model in [json!(null), json!(""), json!(3)] {
            let body = json!({"model": model, "input": "a"});
            assert_eq!(refusal(body), (400, Some("model")));
        }
        assert_eq!(refusal(json!({"input": "a"})), (400, Some("model")));
    }

    #[test]
    fn the_other_members_are_checked() {
        let wrong = [
            ("dimensions", json!(256)),
            ("dimensions", json!("384")),
            ("encoding_format", json!("hex")),
            ("encoding_format", json!(1)),
            ("user", json!(1)),
        ];
        for (member, value) in wrong {
            let body = json!({"model": MODEL, "input": "a", member: value});
            assert_eq!(refusal(body), (400, Some(member)));
        }
        let unknown = json!({"model": MODEL, "input": "a", "inptu": "b"});
        assert_eq!(refusal(unknown), (400, None));
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in [&b""[..], b"{", b"[]", b"\"a\"", b"\xff", b"{} {}"] {
            let error = parse(body).unwrap_err();
            assert_eq!((error.status, error.param), (400, None));
        }
    }
}
