//! What a server says of itself, and whether it can carry locks.

use dlock_core::BackendError;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::error::{Place, of_opening};
use crate::schema::{self, literal};

/// The oldest server that ends idle sessions by itself.
pub(crate) const OLDEST: u32 = 140_000;

/// What was found.
#[derive(Debug)]
pub(crate) struct Facts {
    /// All tables of the schema.
    pub(crate) all_are_there: bool,
    /// The role may ask where the server is.
    pub(crate) may_ask_origin: bool,
}

impl Facts {
    /// The columns of a SELECT that asks.
    pub(crate) fn columns(schema: &str) -> String {
        let schema = literal(schema);
        format!(
            "pg_is_in_recovery() AS standby, current_setting('server_version_num')::int AS number,
             version() AS version, to_regproc('aurora_version') IS NOT NULL AS aurora,
             (SELECT coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE')), false) FROM pg_proc p
               WHERE p.pronamespace = 'pg_catalog'::regnamespace
                 AND p.proname IN ('pg_control_system', 'pg_walfile_name', 'pg_current_wal_insert_lsn')) AS may_ask,
             ARRAY(SELECT relname || ' ' || relpersistence::text FROM pg_class WHERE relkind IN ('r', 'p')
                      AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {schema})) AS tables"
        )
    }

    /// Reads the answer, and refuses what only looks like a PostgreSQL primary.
    pub(crate) fn read(place: &Place, row: &PgRow) -> Result<Self, BackendError> {
        let Place { database, .. } = place;
        let failed = |error| of_opening(place, error);
        let version: String = row.try_get("version").map_err(failed)?;
        let number: i32 = row.try_get("number").map_err(failed)?;
        for (found, name, why) in [
            (version.contains("CockroachDB"), "CockroachDB", "its advisory locks lock nothing"),
            (version.contains("-YB-"), "YugabyteDB", "it keeps no unlogged tables"),
            (row.try_get("aurora").map_err(failed)?, "Aurora", "its unlogged tables survive crashes"),
        ] {
            if found {
                return Err(BackendError::refused(format!(
                    "database {database} is {name}, which is not supported since {why}: use PostgreSQL itself"
                )));
            }
        }
        let number = u32::try_from(number).unwrap_or(0);
        if number < OLDEST {
            return Err(too_old(place, number));
        }
        // Advisory locks work on a standby, and its sessions outlive a promotion.
        if row.try_get("standby").map_err(failed)? {
            return Err(BackendError::unavailable(format!(
                "the server of database {database} is a standby, which is read-only: connect to the primary, or promote \
                 this one"
            )));
        }
        let tables: Vec<String> = row.try_get("tables").map_err(failed)?;
        Ok(Self {
            all_are_there: all_are_there(place, &tables)?,
            may_ask_origin: row.try_get("may_ask").map_err(failed)?,
        })
    }
}

/// Whether all tables are there; an error if they are not as they must be.
fn all_are_there(place: &Place, tables: &[String]) -> Result<bool, BackendError> {
    let Place { schema, database, .. } = place;
    let mut found = 0;
    for (name, kept) in tables.iter().filter_map(|table| table.rsplit_once(' ')) {
        let Some((_, expected)) = schema::TABLES.iter().find(|(table, _)| *table == name) else {
            continue;
        };
        if kept != expected.to_string() {
            let how = if *expected == 'u' { "UNLOGGED" } else { "LOGGED" };
            return Err(BackendError::refused(format!(
                "table {name} of schema {schema:?} in database {database} must be {how}, or locks and tokens do not \
                 survive a crash: run ALTER TABLE {}.{name} SET {how} while nobody uses it",
                schema::quote(schema)
            )));
        }
        found += 1;
    }
    Ok(found == schema::TABLES.len())
}

pub(crate) fn too_old(place: &Place, version: u32) -> BackendError {
    BackendError::refused(format!(
        "the server of database {} is PostgreSQL {}, which does not end idle sessions by itself: 14 or newer is needed",
        place.database,
        version / 10_000
    ))
}
