//! What the rows that statements answer with mean.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::error::{Failure, Place, of_statement};

/// The answer to a claim.
pub(crate) enum Answer {
    Granted { token: i64, prev: i64 },
    Held { marked: bool, name: Option<Vec<u8>> },
    GivenBack { unlocked: bool, debt: Option<(i64, i64)> },
}

/// A row, read by the names of its columns.
pub(crate) struct Row<'a> {
    pub(crate) row: &'a PgRow,
    pub(crate) place: &'a Place,
}

impl Row<'_> {
    pub(crate) fn get<'r, T>(&'r self, column: &str) -> Result<T, Failure>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        self.row.try_get(column).map_err(|error| of_statement(self.place, error))
    }

    /// Reads the answer to a claim.
    pub(crate) fn claim(&self) -> Result<Answer, Failure> {
        if !self.get::<bool>("got")? {
            return Ok(Answer::Held { marked: self.get("marked")?, name: self.get("seen_name")? });
        }
        if let Some(token) = self.get::<Option<i64>>("token")? {
            return Ok(Answer::Granted { token, prev: self.get("prev")? });
        }
        let unlocked = self.get::<Option<bool>>("unlocked")? == Some(true);
        let debt = self.get::<Option<i64>>("seen_token")?.zip(self.get("seen_owed")?);
        Ok(Answer::GivenBack { unlocked, debt })
    }
}
