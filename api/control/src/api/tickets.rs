//! `nimbus.control.v1.Tickets`.

use std::sync::Arc;

use nimbus_api::id::{NodeId, OrgId};
use nimbus_api::proto::control::v1::tickets_server::Tickets;
use nimbus_api::proto::control::v1::{
    CreateTicketRequest, ListTicketsRequest, ListTicketsResponse, RevokeTicketRequest, Ticket,
};
use nimbus_api::{Digest, RefusalCode};
use tonic::{Request, Response, Status};

use super::{Person, misc, org_name, page};
use crate::app::App;
use crate::limits::{TICKET_SECONDS_DEFAULT, TICKET_SECONDS_MAX, TICKET_USES_MAX};
use crate::store::{NewTicket, TicketRow};
use crate::{spec, status};

/// What a ticket's text begins with.
const PREFIX: &str = "nt1.";

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct TicketsService(pub(crate) Arc<App>);

fn ticket(row: TicketRow, secret: String) -> Ticket {
    let node = row.node;
    Ticket {
        name: format!("orgs/{}/tickets/{}", row.org, row.ticket),
        secret,
        max_uses: row.max_uses,
        uses: row.uses,
        node: if node.is_empty() { node } else { format!("nodes/{node}") },
        created_at_ms: row.created_ms,
        expires_at_ms: row.expires_ms,
        revoked_at_ms: row.revoked_ms,
    }
}

/// Reads "orgs/ORG/tickets/TICKET".
fn ticket_name(name: &str) -> Result<(OrgId, String), Status> {
    let parts: Vec<_> = name.split('/').collect();
    if let ["orgs", org, "tickets", ticket] = parts.as_slice()
        && let Ok(org) = org.parse()
    {
        return Ok((org, (*ticket).to_owned()));
    }
    Err(status::invalid("name", "expected orgs/ORG/tickets/TICKET"))
}

fn node_name(name: &str) -> Result<String, Status> {
    if name.is_empty() {
        return Ok(String::new());
    }
    let node = name.strip_prefix("nodes/").and_then(|node| node.parse::<NodeId>().ok());
    let node = node.ok_or_else(|| status::invalid("node", "expected nodes/NODE"))?;
    Ok(node.to_string())
}

/// A number of a request: the default for 0, refused above the most.
fn bounded(field: &'static str, asked: u32, default: u32, most: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(default),
        _ if asked <= most => Ok(asked),
        _ => Err(status::invalid(field, format_args!("found {asked}, at most {most}"))),
    }
}

#[tonic::async_trait]
impl Tickets for TicketsService {
    async fn create_ticket(
        &self,
        request: Request<CreateTicketRequest>,
    ) -> Result<Response<Ticket>, Status> {
        let person = Person::of(&request)?;
        let asked = request.into_inner();
        let org = org_name("parent", &asked.parent)?;
        if !person.sees(&org) {
            return Err(status::code(RefusalCode::RequestForbidden));
        }
        let node = node_name(&asked.node)?;
        let max_uses = bounded("max_uses", asked.max_uses, 1, TICKET_USES_MAX)?;
        let seconds =
            bounded("ttl_seconds", asked.ttl_seconds, TICKET_SECONDS_DEFAULT, TICKET_SECONDS_MAX)?;
        spec::check_bundles("bundles", &asked.bundles).map_err(|found| status::field(&found))?;
        let secret = format!("{PREFIX}{}", misc::secret());
        let now_ms = self.0.clock.unix_millis();
        let new = NewTicket {
            ticket: spec::new_id('t'),
            org: org.to_string(),
            secret: Digest::of(secret.as_bytes()),
            node,
            max_uses,
            bundles: asked.bundles,
            expires_ms: now_ms.saturating_add(i64::from(seconds).saturating_mul(1000)),
        };
        let row = self.0.store.add_ticket(new, now_ms).await.map_err(status::store)?;
        Ok(Response::new(ticket(row, secret)))
    }

    async fn list_tickets(
        &self,
        request: Request<ListTicketsRequest>,
    ) -> Result<Response<ListTicketsResponse>, Status> {
        let person = Person::of(&request)?;
        let asked = request.into_inner();
        let org = org_name("parent", &asked.parent)?;
        if !person.sees(&org) {
            return Err(status::code(RefusalCode::TicketNotFound));
        }
        let size = page::size(asked.page_size)?;
        let query = format!("tickets {}", asked.parent);
        let before = page::last(&query, &asked.page_token)?;
        let found = self.0.store.tickets(org.to_string(), before, size.saturating_add(1)).await;
        let mut rows = found.map_err(status::store)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        let last = rows.last().filter(|_row| more).map(|row| page::token(&query, &row.ticket));
        let next_page_token = last.unwrap_or_default();
        let tickets = rows.into_iter().map(|row| ticket(row, String::new())).collect();
        Ok(Response::new(ListTicketsResponse { tickets, next_page_token }))
    }

    async fn revoke_ticket(
        &self,
        request: Request<RevokeTicketRequest>,
    ) -> Result<Response<Ticket>, Status> {
        let person = Person::of(&request)?;
        let (org, id) = ticket_name(&request.into_inner().name)?;
        if !person.sees(&org) {
            return Err(status::code(RefusalCode::TicketNotFound));
        }
        let now_ms = self.0.clock.unix_millis();
        let revoked = self.0.store.revoke_ticket(org.to_string(), id, now_ms).await;
        Ok(Response::new(ticket(revoked.map_err(status::store)?, String::new())))
    }
}
