//! What is asked of the vectors and recommended, in the caller's session; and what the worker keeps for that.
//!
//! It never shows a row that is not there any more, or that the caller may not read.

// embed: a text's vector, by the model that made the pipeline's.
pub mod query;

// When the account's limits let its request go.
mod turn;

// The planner's guesses are no queries.
pub mod planning;

// search: the rows nearest to a text.
mod search;

// The JSON filter, as SQL over parameters.
mod filter;

// What a user is interested in, as a vector.
pub mod interest;

// How alike two items are.
mod likeness;

// What is kept of interactions, in step with them.
pub mod keep;

// Models trained on it.
pub mod train;

// recommend, similar, popular: the lists.
pub mod lists;

// How good they would have been.
mod evaluate;

// What was shown of them, and what has come of it.
pub mod shown;

// A person leaves all of it.
mod forget;
