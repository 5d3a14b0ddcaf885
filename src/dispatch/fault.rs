//! What can be wrong with a row and its vector, as they stand.
//!
//! It never says whether somebody is about to put it right: see [`super::pending`].

/// A row that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row with a text has no vector.
    Missing,
    /// Its vector is not that of its text.
    Stale,
    /// A vector without a row, or whose row matches no filter or has no text.
    Orphaned,
    /// Its vector is by another model than the server's.
    WrongModel,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::Missing => "missing",
            Fault::Stale => "stale",
            Fault::Orphaned => "orphaned",
            Fault::WrongModel => "wrong_model",
        }
    }
}

/// A row as it was looked at, beside its vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looked {
    /// `None`: the row is gone, matches no filter or has no text.
    pub text: Option<String>,
    /// The hash of the text that its vector is of.
    pub stored_hash: Option<Vec<u8>>,
    /// The model that its vector is by; `None` as well where a column holds another vector than was stored there.
    pub model: Option<String>,
    /// The hash of the vector that the row's column holds.
    pub held: Option<Vec<u8>>,
}

impl Looked {
    /// A vector, or what is noted of one, is there.
    pub fn has_something(&self) -> bool {
        self.stored_hash.is_some() || self.held.is_some()
    }

    /// Its vector is that of a text of this hash, by this model.
    pub fn is_of(&self, hash: &[u8], model: &str) -> bool {
        self.stored_hash.as_deref() == Some(hash) && self.model.as_deref() == Some(model)
    }

    /// `hash`: of its text, if it has one; `in_column`: its vector is in a column of its own.
    pub fn fault(&self, hash: Option<&[u8]>, model: &str, in_column: bool) -> Option<Fault> {
        let Some(hash) = hash else {
            return self.has_something().then_some(Fault::Orphaned);
        };
        let vector = if in_column {
            &self.held
        } else {
            &self.stored_hash
        };
        if vector.is_none() {
            return Some(Fault::Missing);
        }
        match self.model.as_deref() {
            Some(by) if by != model => Some(Fault::WrongModel),
            _ => (!self.is_of(hash, model)).then_some(Fault::Stale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(stored: &str, model: &str, held: &str) -> Looked {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Looked {
            text: None,
            stored_hash: some(stored).map(String::into_bytes),
            model: some(model),
            held: some(held).map(String::into_bytes),
        }
    }

    #[test]
    fn a_row_has_one_fault_at_the_most_and_none_where_it_would_not_be_embedded_again() {
        use Fault::*;
        for (in_column, stored, model, held, with_text, without) in [
            (false, "", "", "", Some(Missing), None),
            (false, "h", "m", "", None, Some(Orphaned)),
            (false, "x", "m", "", Some(Stale), Some(Orphaned)),
            (false, "h", "n", "", Some(WrongModel), Some(Orphaned)),
            (false, "x", "n", "", Some(WrongModel), Some(Orphaned)),
            (true, "", "", "", Some(Missing), None),
            // The column was emptied, written over, or had a vector before.
            (true, "h", "", "", Some(Missing), Some(Orphaned)),
            (true, "h", "", "v", Some(Stale), Some(Orphaned)),
            (true, "", "", "v", Some(Stale), Some(Orphaned)),
            (true, "h", "m", "v", None, Some(Orphaned)),
            (true, "x", "m", "v", Some(Stale), Some(Orphaned)),
            (true, "h", "n", "v", Some(WrongModel), Some(Orphaned)),
        ] {
            let looked = looked(stored, model, held);
            assert_eq!(
                looked.fault(Some(b"h"), "m", in_column),
                with_text,
                "{looked:?}"
            );
            assert_eq!(looked.fault(None, "m", in_column), without, "{looked:?}");
            assert_eq!(with_text.is_none(), looked.is_of(b"h", "m"), "{looked:?}");
        }
    }
}
