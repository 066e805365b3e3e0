//! `ticket`: what pods show to be an org's.

use nimbus_api::proto::control::v1::tickets_client::TicketsClient;
use nimbus_api::proto::control::v1::{
    CreateTicketRequest, ListTicketsRequest, RevokeTicketRequest, Ticket,
};
use serde_json::json;
use tonic::transport::Channel;

use super::{Session, submit};
use crate::cli::{TicketArgs, TicketCommand};
use crate::client::timely;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output::{self, Table};
use crate::view::{TicketView, last_part};

/// Tickets of one page.
const PAGE_SIZE: u32 = 500;
/// Most pages that are read.
const PAGES_MAX: u32 = 100;

pub(super) async fn run(session: &Session, command: &TicketCommand) -> Result<Exit, CtlError> {
    let mut client = TicketsClient::new(session.channel.clone());
    match command {
        TicketCommand::Create(args) => create(session, client, args).await,
        TicketCommand::List { org } => list(session, client, org.as_deref()).await,
        TicketCommand::Revoke { ticket } => {
            let name = session.ticket_name(ticket)?;
            let request = RevokeTicketRequest { name };
            let revoked = client.revoke_ticket(timely(request)).await?.into_inner();
            if session.json {
                output::print_json(&TicketView::from(&revoked))?;
            } else {
                output::print_table(&table(&[revoked]))?;
            }
            Ok(Exit::Done)
        }
    }
}

async fn create(
    session: &Session,
    mut client: TicketsClient<Channel>,
    args: &TicketArgs,
) -> Result<Exit, CtlError> {
    let request = CreateTicketRequest {
        parent: session.parent(args.org.as_deref())?,
        max_uses: args.uses,
        ttl_seconds: args.ttl,
        node: args.node.as_ref().map(|node| format!("nodes/{node}")).unwrap_or_default(),
        bundles: submit::read_bundles(&args.bundles)?,
    };
    let ticket = client.create_ticket(timely(request)).await?.into_inner();
    if session.json {
        let shown = TicketView::from(&ticket);
        output::print_json(&json!({"secret": ticket.secret, "ticket": shown}))?;
    } else {
        output::print(&format!("{}\n", output::escaped(&ticket.secret)))?;
    }
    Ok(Exit::Done)
}

async fn list(
    session: &Session,
    mut client: TicketsClient<Channel>,
    org: Option<&str>,
) -> Result<Exit, CtlError> {
    let parent = session.parent(org)?;
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut page_token = String::new();
    for _page in 0..PAGES_MAX {
        let request =
            ListTicketsRequest { parent: parent.clone(), page_size: PAGE_SIZE, page_token };
        let page = client.list_tickets(timely(request)).await?.into_inner();
        tickets.extend(page.tickets);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.json {
        let tickets: Vec<_> = tickets.iter().map(TicketView::from).collect();
        output::print_json(&json!({"tickets": tickets}))?;
    } else {
        output::print_table(&table(&tickets))?;
    }
    Ok(Exit::Done)
}

fn table(tickets: &[Ticket]) -> Table {
    let mut table = Table::new(&["TICKET", "USES", "NODE", "CREATED", "ENDS", "REVOKED"]);
    for ticket in tickets {
        let shown = TicketView::from(ticket);
        table.row(vec![
            last_part(&shown.name).into(),
            format!("{}/{}", shown.uses, shown.max_uses).into(),
            last_part(&shown.node).into(),
            shown.created_at.unwrap_or_default().into(),
            shown.expires_at.unwrap_or_default().into(),
            shown.revoked_at.unwrap_or_default().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_ticket_has_no_secret_and_says_what_is_left_of_it() {
        let ticket = Ticket {
            name: "orgs/acme/tickets/t1".to_owned(),
            secret: "nt1.secret".to_owned(),
            max_uses: 3,
            uses: 1,
            node: "nodes/n1".to_owned(),
            revoked_at_ms: 1_700_000_000_000,
            ..Ticket::default()
        };
        let text = table(std::slice::from_ref(&ticket)).render(false);
        assert!(text.contains("t1") && text.contains("1/3") && text.contains("n1"), "{text}");
        assert!(text.contains("2023-11-14T22:13:20Z"), "{text}");
        let json = serde_json::to_string(&TicketView::from(&ticket)).unwrap();
        assert!(!text.contains("secret") && !json.contains("secret"), "{text}{json}");
    }
}
