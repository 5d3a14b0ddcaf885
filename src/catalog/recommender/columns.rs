//! The columns of the interactions that are users, items and times: found from foreign keys, types and names.
//!
//! It never guesses between two: what is ambiguous is refused with the candidates.

/// Names that users go by where no foreign key says it.
const USERS: [&str; 14] = [
    "user_id",
    "userid",
    "user",
    "customer_id",
    "customerid",
    "customer",
    "account_id",
    "member_id",
    "person_id",
    "profile_id",
    "visitor_id",
    "client_id",
    "subscriber_id",
    "session_id",
];

/// A column of the interactions.
#[derive(Clone)]
pub struct Column {
    pub name: String,
    /// A timestamp, with time zone or without.
    pub is_time: bool,
    /// What its foreign key of one column refers to.
    pub refers_to: Option<u32>,
}

/// What was given, or found.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    pub user: String,
    pub item: String,
    pub at: String,
}

#[derive(Debug, PartialEq)]
pub enum NotFound {
    /// There is no such column.
    Unknown { column: String },
    /// None can be meant.
    None {
        argument: &'static str,
        of: &'static str,
    },
    Ambiguous {
        argument: &'static str,
        candidates: Vec<String>,
    },
}

/// `items` is the table of the items, by number and bare name.
pub fn find(
    columns: &[Column],
    items: (u32, &str),
    user: Option<&str>,
    item: Option<&str>,
    at: Option<&str>,
) -> Result<Columns, NotFound> {
    let names = |wanted: &dyn Fn(&Column) -> bool| names_of(columns, wanted);
    let given = |name: &str| -> Result<String, NotFound> {
        let known = columns.iter().any(|column| column.name == name);
        known
            .then(|| name.to_owned())
            .ok_or_else(|| NotFound::Unknown {
                column: name.to_owned(),
            })
    };
    let item = match item {
        Some(item) => given(item)?,
        None => find_item(columns, items)?,
    };
    let user = match user {
        Some(user) => given(user)?,
        None => {
            let others = |column: &Column| column.name != item;
            let named = |column: &Column| USERS.contains(&column.name.to_lowercase().as_str());
            let referring = |column: &Column| {
                others(column) && column.refers_to.is_some_and(|table| table != items.0)
            };
            let all = names(&referring);
            let first = if all.len() > 1 {
                let likely = names(&|column| referring(column) && named(column));
                if likely.len() == 1 { likely } else { all }
            } else {
                all
            };
            one_of(
                "user_column",
                "no foreign key and no name says it",
                [first, names(&|column| others(column) && named(column))],
            )?
        }
    };
    let at = match at {
        Some(at) => given(at)?,
        None => one_of(
            "at_column",
            "no column is a timestamp",
            [names(&|column| column.is_time), Vec::new()],
        )?,
    };
    Ok(Columns { user, item, at })
}

/// The column that is the item: by a foreign key to the items, or by its name.
pub fn find_item(columns: &[Column], items: (u32, &str)) -> Result<String, NotFound> {
    one_of(
        "item_column",
        "no foreign key refers to the items",
        [
            names_of(columns, &|column| column.refers_to == Some(items.0)),
            names_of(columns, &|column| is_named_after(&column.name, items.1)),
        ],
    )
}

fn names_of(columns: &[Column], wanted: &dyn Fn(&Column) -> bool) -> Vec<String> {
    let found = columns.iter().filter(|column| wanted(column));
    found.map(|column| column.name.clone()).collect()
}

/// The only one of the first kind of candidates that there are.
fn one_of(
    argument: &'static str,
    of: &'static str,
    kinds: [Vec<String>; 2],
) -> Result<String, NotFound> {
    match kinds.into_iter().find(|kind| !kind.is_empty()) {
        None => Err(NotFound::None { argument, of }),
        Some(mut kind) if kind.len() == 1 => Ok(kind.remove(0)),
        Some(candidates) => Err(NotFound::Ambiguous {
            argument,
            candidates,
        }),
    }
}

/// `product_id`, `productid` or `product` for products; `item_id` for everything.
fn is_named_after(column: &str, table: &str) -> bool {
    let (column, table) = (column.to_lowercase(), table.to_lowercase());
    let singular = table.strip_suffix('s').unwrap_or(&table);
    [table.as_str(), singular, "item"].iter().any(|stem| {
        column
            .strip_prefix(stem)
            .is_some_and(|rest| matches!(rest, "_id" | "id" | ""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: u32 = 1;
    const CUSTOMER: u32 = 2;
    const SHOP: u32 = 3;

    fn column(name: &str, is_time: bool, refers_to: Option<u32>) -> Column {
        Column {
            name: name.into(),
            is_time,
            refers_to,
        }
    }

    fn found(columns: &[Column]) -> Result<(String, String, String), NotFound> {
        find(columns, (PRODUCT, "products"), None, None, None)
            .map(|found| (found.user, found.item, found.at))
    }

    fn three(user: &str, item: &str, at: &str) -> Result<(String, String, String), NotFound> {
        Ok((user.into(), item.into(), at.into()))
    }

    #[test]
    fn foreign_keys_say_who_and_what() {
        let columns = [
            column("id", false, None),
            column("buyer", false, Some(CUSTOMER)),
            column("thing", false, Some(PRODUCT)),
            column("happened", true, None),
        ];
        assert_eq!(found(&columns), three("buyer", "thing", "happened"));
    }

    #[test]
    fn names_say_it_where_no_foreign_key_does() {
        let columns = [
            column("user_id", false, None),
            column("product_id", false, None),
            column("created_at", true, None),
        ];
        assert_eq!(
            found(&columns),
            three("user_id", "product_id", "created_at")
        );
        for (column, is) in [
            ("productsid", true),
            ("product", true),
            ("item_id", true),
            ("production_id", false),
        ] {
            assert_eq!(is_named_after(column, "products"), is, "{column}");
        }
    }

    #[test]
    fn a_name_decides_between_foreign_keys_where_it_can() {
        let mut columns = vec![
            column("customer_id", false, Some(CUSTOMER)),
            column("shop_id", false, Some(SHOP)),
            column("product_id", false, Some(PRODUCT)),
            column("at", true, None),
        ];
        assert_eq!(found(&columns), three("customer_id", "product_id", "at"));
        columns[0].name = "payer".into();
        assert_eq!(
            found(&columns),
            Err(NotFound::Ambiguous {
                argument: "user_column",
                candidates: vec!["payer".into(), "shop_id".into()],
            })
        );
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_with_the_candidates() {
        let columns = [
            column("user_id", false, None),
            column("bought", false, Some(PRODUCT)),
            column("returned", false, Some(PRODUCT)),
            column("created_at", true, None),
            column("updated_at", true, None),
        ];
        let refusal = |item, at| find(&columns, (PRODUCT, "product"), None, item, at);
        assert_eq!(
            refusal(None, None),
            Err(NotFound::Ambiguous {
                argument: "item_column",
                candidates: vec!["bought".into(), "returned".into()],
            })
        );
        assert_eq!(
            refusal(Some("bought"), None),
            Err(NotFound::Ambiguous {
                argument: "at_column",
                candidates: vec!["created_at".into(), "updated_at".into()],
            })
        );
        assert!(refusal(Some("bought"), Some("created_at")).is_ok());
        assert_eq!(
            refusal(Some("sold"), None),
            Err(NotFound::Unknown {
                column: "sold".into()
            })
        );
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(
            found(&[column("product_id", false, None), column("t", true, None)]),
            Err(NotFound::None {
                argument: "user_column",
                of: "no foreign key and no name says it"
            })
        );
        let timeless = [
            column("user_id", false, None),
            column("product_id", false, None),
        ];
        assert!(matches!(
            found(&timeless),
            Err(NotFound::None {
                argument: "at_column",
                ..
            })
        ));
    }
}
