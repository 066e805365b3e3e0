//! Page tokens: opaque, and good only for the very list they came from.
//!
//! A token is the base64 of a hash of the query and the last name of the page. It grants nothing:
//! who may see what is checked at each call.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use nimbus_api::Digest;
use tonic::Status;

use crate::limits::{PAGE_DEFAULT, PAGE_MAX, PAGE_TOKEN_BYTES_MAX};
use crate::status;

const HASH_BYTES: usize = 16;

fn hash(query: &str) -> Vec<u8> {
    Digest::of(query.as_bytes()).as_bytes().iter().take(HASH_BYTES).copied().collect()
}

/// The token of the page that follows `last`.
pub(super) fn token(query: &str, last: &str) -> String {
    let mut bytes = hash(query);
    bytes.extend_from_slice(last.as_bytes());
    BASE64.encode(bytes)
}

/// The last name of the page before; none for the first page.
pub(super) fn last(query: &str, token: &str) -> Result<Option<String>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = || status::invalid("page_token", "expected a token of this very list");
    if token.len() > PAGE_TOKEN_BYTES_MAX {
        return Err(wrong());
    }
    let bytes = BASE64.decode(token).map_err(|_error| wrong())?;
    let last = bytes.strip_prefix(hash(query).as_slice()).ok_or_else(wrong)?;
    String::from_utf8(last.to_vec()).map(Some).map_err(|_error| wrong())
}

/// The size of a page.
pub(super) fn size(asked: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(PAGE_DEFAULT),
        1..=PAGE_MAX => Ok(asked),
        more => Err(status::invalid("page_size", format_args!("found {more}, at most {PAGE_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_is_good_for_its_own_list_only(a in "\\PC{0,20}", b in "\\PC{0,20}", name in "[a-z0-9]{1,40}") {
            let token = token(&a, &name);
            prop_assert_eq!(last(&a, &token).unwrap(), Some(name));
            prop_assert_eq!(last(&b, &token).is_ok(), a == b);
        }

        #[test]
        fn no_text_panics_the_reader(text in "\\PC{0,60}") {
            drop(last("q", &text));
        }
    }
}
