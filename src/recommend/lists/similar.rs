//! similar: the items most like one, by their vectors, by who has had to do with them, or by both.

use pgrx::datum::DatumWithOid;

use super::question::Question;
use super::{Kind, Listed, content, list_of, listed, require_rights, statements};
use crate::catalog::recommender::Recommender;
use crate::catalog::recommender::embedding::Vectors;
use crate::error::{Error, Result};
use crate::recommend::interest::vectors_of;
use crate::store::vector::Numbers;

/// What makes items alike.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Content,
    Interactions,
    Blend,
}

impl By {
    fn of(question: &Question) -> Result<Option<By>> {
        match question.by.as_deref() {
            None => Ok(None),
            Some("content") => Ok(Some(By::Content)),
            Some("interactions") => Ok(Some(By::Interactions)),
            Some("blend") => Ok(Some(By::Blend)),
            Some(other) => Err(Error::argument(
                "by",
                format!("\"{other}\" is not one"),
                "The valid ones are content, interactions and blend.",
            )),
        }
    }
}

/// Refuses what a pipeline, which knows of no interactions, cannot answer.
pub fn require_content(question: &Question) -> Result<()> {
    match By::of(question)? {
        None | Some(By::Content) => Ok(()),
        Some(_) => Err(Error::argument(
            "by",
            "a pipeline knows of no interactions",
            "Leave it out, or ask a recommender.",
        )),
    }
}

pub fn similar_to(
    recommender: &Recommender,
    item: Option<&str>,
    question: &Question,
) -> Result<Listed> {
    require_rights(recommender, Kind::Similar)?;
    let by = By::of(question)?;
    let vectors = match (&recommender.vectors, by) {
        (None, Some(By::Content)) => {
            return Err(Error::argument(
                "by",
                format!("the items of {} have no vectors", recommender.name),
                "Make the recommender with text and server, or with a pipeline as its items.",
            ));
        }
        (None, _) | (_, Some(By::Interactions)) => None,
        (Some(vectors), _) => Some(vectors),
    };
    let vector = match (vectors, item) {
        (Some(_), Some(item)) => vectors_of(recommender, &[item.to_owned()])?
            .into_values()
            .next(),
        _ => None,
    };
    let found = match (vectors, vector) {
        (Some(vectors), Some(vector)) => {
            let by_content = by == Some(By::Content);
            near(recommender, vectors, item, &vector, question, by_content)?
        }
        (Some(_), None) if by == Some(By::Content) => Vec::new(),
        _ => {
            let statement = statements::similar(recommender)?;
            let rest = statements::similar_rest(recommender)?;
            list_of(recommender, question, &statement, &[rest], || {
                vec![item.into()]
            })?
        }
    };
    Ok(listed(question, found))
}

fn near(
    recommender: &Recommender,
    vectors: &Vectors,
    item: Option<&str>,
    vector: &[f32],
    question: &Question,
    by_content: bool,
) -> Result<Vec<super::Candidate>> {
    let (first, rest) = match by_content {
        true => (
            content::similar(recommender, vectors)?,
            content::rest(recommender, vectors, &vectors.distance.score("n.distance"))?,
        ),
        false => (
            content::blend(recommender, vectors, &statements::similar(recommender)?)?,
            content::rest(recommender, vectors, "0::float8")?,
        ),
    };
    list_of(recommender, question, &first, &[rest], || {
        let vector: DatumWithOid = Numbers(vector.to_vec()).into();
        vec![item.into(), vector]
    })
}
