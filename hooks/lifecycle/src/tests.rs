//! Tests of `admit` and of `exec` as a whole.

mod exec_table;
mod facts_table;
mod fixtures;
mod properties;
mod spec_table;
