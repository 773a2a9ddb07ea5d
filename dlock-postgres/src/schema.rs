//! The schema: what it is made of, who may use it, and whether it is as it should be.

use crate::key::DEFAULT_SCHEMA;

const TEXT: &str = include_str!("schema.sql");

/// The tables, in alphabetical order, with how they must be kept: `p` durable, `u` emptied by a crash.
pub(crate) const TABLES: [(&str, char); 4] =
    [("counters", 'u'), ("epoch", 'u'), ("holders", 'u'), ("meta", 'p')];

/// The statements that make the schema.
pub(crate) fn make(schema: &str) -> String {
    if schema == DEFAULT_SCHEMA {
        return TEXT.to_owned();
    }
    let quoted = quote(schema);
    // Part by part, since a schema may have any name, and one that looks like a statement as well.
    let tables = |part: &str| part.replace(" dlock.", &format!(" {quoted}."));
    TEXT.split(" EXISTS dlock;").map(tables).collect::<Vec<_>>().join(&format!(" EXISTS {quoted};"))
}

/// The statements that let a role use the schema.
pub(crate) fn grants(schema: &str, role: &str) -> String {
    let (schema, role) = (quote(schema), quote(role));
    format!(
        "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.meta, {schema}.epoch, {schema}.counters, {schema}.holders \
         TO {role};\n"
    )
}

/// An identifier as SQL reads it: quoted, unless it needs no quotes and is ours.
pub(crate) fn quote(identifier: &str) -> String {
    if identifier == DEFAULT_SCHEMA {
        identifier.to_owned()
    } else {
        format!("\"{}\"", identifier.replace('"', "\"\""))
    }
}

/// A text as SQL reads it, however the server is set.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_schema_is_quoted() {
        let text = make(r#"my "locks"; DROP"#);
        assert!(text.contains(r#"CREATE SCHEMA IF NOT EXISTS "my ""locks""; DROP";"#), "{text}");
        assert_eq!(text.matches(r#"EXISTS "my ""locks""; DROP"."#).count(), 4, "{text}");
        assert!(!text.contains(" dlock."), "{text}");
    }

    #[test]
    fn texts_stay_texts() {
        assert_eq!(literal(r"it's a \ 'text"), r"E'it''s a \\ ''text'");
    }

    #[test]
    fn the_tables_are_those_of_the_text() {
        for (table, kept) in TABLES {
            let unlogged = TEXT.contains(&format!("CREATE UNLOGGED TABLE IF NOT EXISTS dlock.{table} ("));
            let logged = TEXT.contains(&format!("CREATE TABLE IF NOT EXISTS dlock.{table} ("));
            assert_eq!((unlogged, logged), (kept == 'u', kept == 'p'), "{table}");
            assert!(grants("dlock", "app").contains(&format!("dlock.{table}")), "{table}");
        }
    }
}
