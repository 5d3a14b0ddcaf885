//! CREATE SERVER: what the validator refuses, and who may set what.

use crate::support::{Sql, shared};

#[test]
fn validator_errors_name_the_option_and_what_is_valid() {
    let mut db = shared().database();
    let good = "api 'openai', url 'http://127.0.0.1:1/v1', model 'm', dimensions '16'";
    for (options, code, wanted) in [
        (
            format!("{good}, colour 'red'"),
            "HV00D",
            &["colour", "max_batch_inputs", "api_key_env"][..],
        ),
        (good.replace("http:", "ftp:"), "HV024", &["url", "http"]),
        (
            good.replace("http://", "http://user:secret@"),
            "HV024",
            &["url", "api_key_env"],
        ),
        (
            good.replace("/v1", "/v1?api_key=sk-123456789012345678901234"),
            "HV024",
            &["url"],
        ),
        (good.replace("model 'm', ", ""), "HV00J", &["model"]),
        (
            good.replace(", dimensions '16'", ""),
            "HV00J",
            &["dimensions"],
        ),
        (
            good.replace("'16'", "'-1'"),
            "HV024",
            &["dimensions", "1", "16000"],
        ),
        (
            good.replace("'16'", "'many'"),
            "HV024",
            &["dimensions", "whole number"],
        ),
        (
            format!("{good}, max_attempts '0'"),
            "HV024",
            &["max_attempts", "1", "100"],
        ),
        (
            format!("{good}, max_batch_inputs '100000'"),
            "HV024",
            &["max_batch_inputs", "2048"],
        ),
        (
            format!("{good}, read_timeout 'soon'"),
            "HV024",
            &["read_timeout", "30s"],
        ),
        (
            format!("{good}, encoding 'hex'"),
            "HV024",
            &["encoding", "base64", "float"],
        ),
        (
            format!(r#"{good}, headers '{{"Authorization": "Bearer x"}}'"#),
            "HV024",
            &["headers", "header_file"],
        ),
        (
            format!("{good}, extra_body 'no json'"),
            "HV024",
            &["extra_body", "JSON object"],
        ),
        (
            format!("{good}, api_key_file '../outside'"),
            "HV024",
            &["api_key_file"],
        ),
        (
            format!("{good}, api_key_env 'A_API_KEY', api_key_file 'a'"),
            "HV024",
            &["api_key_env", "api_key_file"],
        ),
        (
            good.replace("openai", "telepathy"),
            "HV024",
            &["telepathy", "openai", "builtin"],
        ),
        (
            "model 'm'".to_owned(),
            "HV00J",
            &["api", "openai", "builtin"],
        ),
    ] {
        let error = db.refused(&format!(
            "CREATE SERVER s FOREIGN DATA WRAPPER recsync OPTIONS ({options})"
        ));
        assert_eq!(error.code().code(), code, "{options}: {error:?}");
        let said = format!(
            "{} {} {}",
            error.message(),
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default()
        );
        for wanted in wanted {
            assert!(
                said.contains(wanted),
                "{options}: \"{wanted}\" is not in: {said}"
            );
        }
        assert!(
            !said.contains("sk-123456789") && !said.contains("secret@"),
            "a key is quoted: {said}"
        );
    }
    db.run(&format!(
        "CREATE SERVER s FOREIGN DATA WRAPPER recsync OPTIONS ({good})"
    ));
    assert_eq!(
        db.refused("ALTER SERVER s OPTIONS (SET dimensions '0')")
            .code()
            .code(),
        "HV024"
    );
    assert_eq!(
        db.refused("ALTER SERVER s OPTIONS (DROP model)")
            .code()
            .code(),
        "HV00J"
    );
    assert_eq!(
        db.refused("CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (url 'http://elsewhere/v1')")
            .code()
            .code(),
        "HV00D"
    );
    assert!(
        db.refused("CREATE FOREIGN TABLE t (a int) SERVER s")
            .message()
            .contains("recsync")
    );
}

#[test]
fn servers_owner_may_change_limits_but_only_admins_where_keys_and_texts_go() {
    let mut db = shared().database();
    db.run("DROP ROLE IF EXISTS server_owner, server_admin; CREATE ROLE server_owner LOGIN; CREATE ROLE server_admin LOGIN IN ROLE recsync_admin");
    let name = db.name.clone();
    db.run(&format!("GRANT CREATE ON DATABASE {name} TO server_owner"));
    let mut admin = db.connect_as("server_admin");
    admin.run("CREATE SERVER s FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url 'http://127.0.0.1:1/v1', model 'm', dimensions '16', api_key_env 'TEST_API_KEY')");
    admin.run("ALTER SERVER s OPTIONS (SET url 'http://127.0.0.1:2/v1')");
    db.run("GRANT USAGE ON FOREIGN DATA WRAPPER recsync TO server_owner; ALTER SERVER s OWNER TO server_owner");
    let mut owner = db.connect_as("server_owner");
    owner.run("ALTER SERVER s OPTIONS (ADD max_attempts '5')");
    for protected in [
        "ALTER SERVER s OPTIONS (SET url 'http://evil.example/v1')",
        "ALTER SERVER s OPTIONS (SET api_key_env 'OTHER_API_KEY')",
        "ALTER SERVER s OPTIONS (DROP api_key_env)",
        "ALTER SERVER s OPTIONS (ADD extra_body '{}')",
        "ALTER SERVER s RENAME TO openai",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (api_key_env 'OTHER_API_KEY')",
        "CREATE SERVER t FOREIGN DATA WRAPPER recsync OPTIONS (api 'openai', url 'http://evil.example/v1', model 'm', dimensions '16')",
    ] {
        let error = owner.refused(protected);
        assert_eq!(error.code().code(), "42501", "{protected}: {error:?}");
        assert!(error.hint().is_some(), "{protected}: {error:?}");
    }
}
