//! The cases, by theme. The list of them is [`for_each_case!`](crate::for_each_case).

pub mod cancel;
pub mod exclusion;
pub mod lifecycle;
pub mod loss;
pub mod names;
pub mod processes;
pub mod settle;
pub mod tokens;
pub mod unknown;
pub mod waiting;
