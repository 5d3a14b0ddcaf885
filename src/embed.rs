//! Embed: texts go out, vectors come back.
//!
//! A `Lane` takes owned batches for one foreign server, its threads ask the endpoint that the
//! server's options describe, and replies come back by a channel. A request is made of an
//! [`endpoint`], credentials read by [`secret`], a body written by [`openai`] (or no request at
//! all: [`builtin`]), sent by [`http`] to a host that [`hosts`] lets through; whatever goes wrong
//! is one [`failure::Failure`], and [`retry`] says when to try again.
//!
//! Nothing here calls PostgreSQL or imports pgrx: it all runs on plain threads. A failure's
//! message never holds a key or a piece of an input text that is longer than eight bytes.

// The options of a server: one table of names, kinds, ranges and docs.
pub mod options;

// URLs of servers and proxies.
pub(crate) mod url;

// What the options of a server add up to: where to send, what to ask for, within which limits.
pub mod endpoint;

// Keys, read by name at the moment they are needed.
pub mod secret;

// What counts as a credential, and how texts and keys are taken out of a message.
pub mod leak;

// One kind of failure for everything, in four classes.
pub mod failure;

// The bodies of the `/embeddings` protocol.
pub mod openai;

// Embeddings without a model or a network: hashed words and character trigrams.
pub mod builtin;

// Which hosts and addresses requests may go to.
pub mod hosts;

// One HTTP agent: bounded in time, in bytes and in where it goes.
pub mod http;

// One request to one server, with its key and its fallbacks.
pub mod provider;

// A server's threads.
pub mod lane;

// When to try again: backoff of a job, breaker of a server.
pub mod retry;

#[cfg(test)]
mod testing;
