//! Tests of `admit` as a whole.

mod facts_table;
mod fixtures;
mod properties;
mod spec_table;
