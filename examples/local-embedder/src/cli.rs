//! The command line as plain values. It never touches the file system or the network.

use std::path::PathBuf;

pub const USAGE: &str = "\
Usage: local-embedder --model DIR [options]

An OpenAI-compatible embeddings server that runs all-MiniLM-L6-v2 on the CPU.

  --model DIR              folder with config.json, tokenizer.json, model.safetensors
  --listen ADDRESS:PORT    where to listen; port 0 picks a free one (127.0.0.1:0)
  --threads N              forward passes at once (one for each core)
  --api-key KEY            refuse requests without 'Authorization: Bearer KEY'
  --until-stdin-closes     end when standard input is closed
  --help                   this text

Prints 'listening on http://ADDRESS:PORT' when it is ready.
";

#[derive(Debug, PartialEq)]
pub struct Options {
    pub model: PathBuf,
    pub listen: String,
    /// Forward passes at once, at least 1.
    pub threads: usize,
    pub api_key: Option<String>,
    pub until_stdin_closes: bool,
}

#[derive(Debug, PartialEq)]
pub enum Parsed {
    Run(Options),
    Help,
}

/// Reads the arguments that follow the program's name.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Parsed, String> {
    let mut arguments = arguments.into_iter();
    let mut model = None;
    let mut listen = "127.0.0.1:0".to_owned();
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut api_key = None;
    let mut until_stdin_closes = false;
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--model" => model = Some(PathBuf::from(value()?)),
            "--listen" => listen = value()?,
            "--threads" => {
                threads = value()?
                    .parse()
                    .ok()
                    .filter(|threads| (1..=256).contains(threads))
                    .ok_or("--threads must be a number from 1 to 256")?;
            }
            "--api-key" => api_key = Some(value()?),
            "--until-stdin-closes" => until_stdin_closes = true,
            "--help" | "-h" => return Ok(Parsed::Help),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Parsed::Run(Options {
        model: model.ok_or("--model is required")?,
        listen,
        threads,
        api_key,
        until_stdin_closes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Parsed, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_model_alone_is_enough() {
        let Ok(Parsed::Run(options)) = parse_line("--model /m") else {
            panic!("refused");
        };
        assert_eq!(options.listen, "127.0.0.1:0");
        assert!(options.threads >= 1);
        assert!(!options.until_stdin_closes);
    }

    #[test]
    fn every_option_is_read() {
        let line =
            "--model /m --listen [::1]:8080 --threads 3 --api-key secret --until-stdin-closes";
        assert_eq!(
            parse_line(line),
            Ok(Parsed::Run(Options {
                model: "/m".into(),
                listen: "[::1]:8080".into(),
                threads: 3,
                api_key: Some("secret".into()),
                until_stdin_closes: true,
            }))
        );
        assert_eq!(parse_line("--help"), Ok(Parsed::Help));
    }

    #[test]
    fn mistakes_are_named() {
        let mistakes = [
            ("", "--model"),
            ("--model", "needs a value"),
            ("--model /m --threads 0", "--threads"),
            ("--model /m --threads many", "--threads"),
            ("--model /m --port 80", "--port"),
        ];
        for (line, named) in mistakes {
            let message = parse_line(line).expect_err(line);
            assert!(message.contains(named), "{line}: {message}");
        }
    }
}
