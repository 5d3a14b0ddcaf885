//! Embed: texts go out, vectors come back.
//!
//! A batch is filled by [`batch`]; a `Lane` takes owned batches for one foreign server, its threads
//! ask the endpoint that the server's options describe, and replies come back by a channel. A
//! request is made of an [`endpoint`], credentials read by [`secret`], a body written by its
//! [`api`] (or no request at all: [`builtin`]), sent by [`http`] to a host that [`hosts`] lets
//! through; the answer is checked by [`reply`]; whatever goes wrong is one [`failure::Failure`],
//! and [`retry`] says when to try again.
//!
//! Nothing here calls PostgreSQL or imports pgrx: it all runs on plain threads. A failure's
//! message never holds a key or a piece of an input text that is longer than eight bytes.

// The options of a server: one table of names, kinds, ranges and docs.
pub mod options;

// URLs of servers and proxies.
pub(crate) mod url;

// The wire protocols, a file each, and the table of them.
pub mod api;

// Models that are known by name.
pub mod presets;

// Options that were given, each checked by itself.
pub(crate) mod given;

// What the options of a server add up to: where to send, what to ask for, within which limits.
pub mod endpoint;

// Keys, read by name at the moment they are needed.
pub mod secret;

// What counts as a credential, and how texts and keys are taken out of a message.
pub mod leak;

// One kind of failure for everything, in four classes.
pub mod failure;

// What an answer's headers say about limits.
pub mod limits;

// What came back, and whether to believe it.
pub mod reply;

// Embeddings without a model or a network: hashed words and character trigrams.
pub mod builtin;

// How many tokens a text has.
pub mod tokens;

// The same of texts that are not sent, by the provider's own count of others.
pub mod token_rate;

// What was sent and counted.
pub mod sent;

// A long text in parts.
pub mod parts;

// What becomes of a text that is longer than a model takes.
pub mod long_text;

// Which texts go into one request.
pub mod batch;

// Which hosts and addresses requests may go to.
pub mod hosts;

// Bytes that go and come.
pub mod traffic;

// One HTTP agent: bounded in time, in bytes and in where it goes.
pub mod http;

// One request to one server, with its key and its fallbacks.
pub mod provider;

// Events of hooks, signed.
pub mod webhook;

// A server's threads.
pub mod lane;

// How many requests a server gets at a time.
pub mod window;

// How many inputs it answers in time.
pub mod size;

// Limits a minute: when the next request may go.
pub mod rate;

// What is left of them, for those who watch.
pub mod left;

// Whose limits they are.
pub mod account;

// When to try again: backoff of a job, breaker of a server.
pub mod retry;

// Vectors that were asked for lately.
pub mod recent;

#[cfg(test)]
mod testing;
