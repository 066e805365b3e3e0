//! Tests of `admit`, `exec` and `update` as a whole.

mod exec_table;
mod facts_table;
mod fixtures;
mod pods;
mod pods_properties;
mod pods_table;
mod properties;
mod spec_table;
mod update_table;
