//! ALTER EXTENSION UPDATE from every version that was released. `releases/` holds a dump of a populated database of
//! each, beside the install script under `sql/`, which never changes again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::moving::{assert_goes_on, assert_the_same, populated, seen};
use crate::support::{Api, Cluster, Database, Sql, shared};

/// In a dump, where its servers are.
const URL: &str = "http://embedding.test/v1";

/// Of the vectors in a dump.
const DIMENSIONS: usize = 4;

/// What is in the extension, a line a property, whatever the order in which it was made.
const CATALOG: &str = include_str!("catalog.sql");

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn releases() -> PathBuf {
    project().join("tests/lifecycle/releases")
}

/// Versions that were released, without the one that is being made.
fn released() -> Vec<String> {
    let mut versions: Vec<String> = fs::read_dir(releases())
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "sql"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    versions.sort();
    assert!(!versions.is_empty());
    versions
}

fn install(db: &mut Database, version: &str) {
    db.run(&format!(
        "CREATE EXTENSION recsync VERSION '{version}' CASCADE"
    ));
}

#[test]
fn update_makes_of_every_release_what_a_fresh_install_makes() {
    let mut fresh = shared().database();
    let wanted: BTreeSet<String> = fresh.column(CATALOG).into_iter().collect();
    for version in released() {
        let mut db = shared().empty_database();
        install(&mut db, &version);
        db.run("ALTER EXTENSION recsync UPDATE");
        let found: BTreeSet<String> = db.column(CATALOG).into_iter().collect();
        let missing: Vec<&String> = wanted.difference(&found).collect();
        let surplus: Vec<&String> = found.difference(&wanted).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "recsync {version}, updated, lacks\n{missing:#?}\nand has\n{surplus:#?}"
        );
    }
}

#[test]
fn populated_database_of_every_release_is_updated_and_pays_for_nothing_again() {
    for version in released() {
        let api = Api::with_dimensions(DIMENSIONS);
        api.refuse_texts_with("poison", 400);
        let cluster = Cluster::start(&[]);
        cluster.connect("postgres").run("CREATE ROLE shop LOGIN");
        let mut db = cluster.empty_database();
        let dump = fs::read_to_string(releases().join(format!("{version}.sql"))).unwrap();
        let newest = "CREATE EXTENSION IF NOT EXISTS recsync WITH SCHEMA recsync";
        assert!(dump.contains(newest));
        let dump = dump
            .replace(URL, &api.url())
            .replace(newest, &format!("{newest} VERSION '{version}'"));
        let quietly = [
            "--quiet",
            "--no-psqlrc",
            "--set",
            "ON_ERROR_STOP=1",
            "--output",
            "/dev/null",
        ];
        cluster.tool("psql", &db.name, &quietly, dump.as_bytes());

        // Between the restart with the new library and the update: writes are captured, everything else waits or says why.
        db.run("UPDATE product SET title = 'before the update' WHERE id = 9; DELETE FROM product WHERE id = 299");
        let refused = db.refused("SELECT recsync.create_pipeline('more', 'product', columns => '{note}', server => 'api')");
        assert_eq!(refused.code().code(), "55000", "{refused:?}");
        let refused = db.refused("SELECT recsync.wait_for('titles')");
        assert_eq!(refused.code().code(), "55000", "{refused:?}");
        assert!(api.texts().is_empty());

        db.run("ALTER EXTENSION recsync UPDATE");
        for name in ["titles", "notes", "customers", "shop"] {
            db.settle(name);
        }
        assert_eq!(api.times_asked("before the update"), 1);
        assert_eq!(api.texts().len(), 2, "{:?}", api.texts());
        api.forget();
        assert_eq!(db.one::<i64>("SELECT count(*) FROM titles"), 299);
        assert_goes_on(&mut db, &api);
    }
}

/// A database whose extension is older than the library, for the moments of an upgrade and after pg_upgrade, calls the
/// library by the older declarations: what they name must be there, and must not read other arguments than are given.
#[test]
fn symbol_that_a_release_names_is_declared_alike_in_every_later_version() {
    let mut declared: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut scripts: Vec<PathBuf> = fs::read_dir(project().join("sql"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.to_string_lossy().matches("--").count() == 1)
        .collect();
    scripts.sort();
    assert!(scripts.len() > released().len() - 1);
    for script in scripts {
        for (symbol, declaration) in symbols(&fs::read_to_string(&script).unwrap()) {
            let script = script.file_name().unwrap().to_string_lossy().into_owned();
            let (first, before) = declared
                .entry(symbol.clone())
                .or_insert_with(|| (script.clone(), declaration.clone()));
            assert_eq!(
                *before, declaration,
                "{symbol} is declared otherwise in {script} than in {first}: give the new one another symbol, and leave the old one in src/catalog/retired.rs"
            );
        }
    }
}

/// The C symbols of a script, and the argument and result types of the functions that call them.
fn symbols(script: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for statement in script.split("CREATE ").skip(1) {
        let statement = statement
            .trim_start()
            .trim_start_matches("OR REPLACE")
            .trim_start();
        let Some(function) = statement.strip_prefix("FUNCTION") else {
            continue;
        };
        let function = match function.find("/* </end") {
            Some(end) => &function[..end],
            None => function,
        };
        let Some(module) = function.find("'MODULE_PATHNAME'") else {
            continue;
        };
        let symbol = function[module..].split('\'').nth(3).unwrap().to_owned();
        let name_and_types = &function[..module];
        let types = &name_and_types[name_and_types.find('(').unwrap()..];
        // Without comments, names in quotes, defaults and what is said of how it is planned.
        let types: String = types
            .lines()
            .map(|line| line.split("/*").next().unwrap_or(line).trim())
            .collect::<Vec<_>>()
            .join(" ");
        let end = [
            "LANGUAGE",
            "STRICT",
            "IMMUTABLE",
            "STABLE",
            "VOLATILE",
            "language",
        ]
        .iter()
        .filter_map(|word| types.find(word))
        .min()
        .unwrap_or(types.len());
        let types: Vec<String> = types[..end]
            .split(',')
            .map(|one| {
                one.split("DEFAULT")
                    .next()
                    .unwrap()
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        found.push((symbol, types.join(", ")));
    }
    found
}

/// At a release: writes the dump of a populated database of this version.
#[test]
#[ignore = "writes tests/lifecycle/releases/VERSION.sql, once, when a version is released"]
fn write_the_dump_of_this_release() {
    let api = Api::with_dimensions(DIMENSIONS);
    let cluster = Cluster::start(&[]);
    let mut db = populated(&cluster, &api);
    let before = seen(&mut db);
    assert_the_same(&before, &seen(&mut db));
    let dump = cluster.tool("pg_dump", &db.name, &["--format=plain"], b"");
    let dump = String::from_utf8(dump).unwrap();
    assert!(dump.contains(&api.url()));
    // Newer clients write what an older one does not know.
    let dump: Vec<&str> = dump
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect();
    let dump = dump.join("\n").replace(&api.url(), URL) + "\n";
    let version: String = db.one("SELECT extversion FROM pg_extension WHERE extname = 'recsync'");
    fs::create_dir_all(releases()).unwrap();
    fs::write(releases().join(format!("{version}.sql")), dump).unwrap();
}
