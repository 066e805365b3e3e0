//! `node`: what there is, and a way in for one more.

use nimbus_api::proto::control::v1::nodes_client::NodesClient;
use nimbus_api::proto::control::v1::{CreateJoinTokenRequest, ListNodesRequest, Node};
use serde_json::json;
use tonic::transport::Channel;

use super::Session;
use crate::cli::NodeCommand;
use crate::client::timely;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output::{self, Cell, Colour, Table};
use crate::units::show_size;
use crate::view::{self, NodeView, last_part};

/// Nodes of one page.
const PAGE_SIZE: u32 = 500;
/// Most pages that are read.
const PAGES_MAX: u32 = 1000;

pub(super) async fn run(session: &Session, command: &NodeCommand) -> Result<Exit, CtlError> {
    let client = NodesClient::new(session.channel.clone());
    match command {
        NodeCommand::List => list(session, client).await,
        NodeCommand::Token { name, ttl } => token(session, client, name, ttl.unwrap_or(0)).await,
    }
}

async fn list(session: &Session, mut client: NodesClient<Channel>) -> Result<Exit, CtlError> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut page_token = String::new();
    for _page in 0..PAGES_MAX {
        let request = ListNodesRequest { page_size: PAGE_SIZE, page_token };
        let page = client.list_nodes(timely(request)).await?.into_inner();
        nodes.extend(page.nodes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let nodes: Vec<NodeView> = nodes.iter().map(NodeView::from).collect();
    if session.json {
        output::print_json(&json!({"nodes": nodes}))?;
        return Ok(Exit::Done);
    }
    let mut table =
        Table::new(&["NODE", "CONNECTED", "JOBS", "CPU", "MEMORY", "POLICY", "VERSION", "SEEN"]);
    for node in &nodes {
        let connected = if node.connected {
            Cell::coloured("yes", Colour::Green)
        } else {
            Cell::coloured("no", Colour::Red)
        };
        table.row(vec![
            last_part(&node.name).into(),
            connected,
            format!("{}/{}", node.running_jobs, node.max_jobs).into(),
            format!("{}m", node.cpu_millis).into(),
            show_size(node.memory_bytes).into(),
            node.policy_serial.to_string().into(),
            (&node.version).into(),
            node.last_seen.clone().unwrap_or_default().into(),
        ]);
    }
    output::print_table(&table)?;
    Ok(Exit::Done)
}

async fn token(
    session: &Session,
    mut client: NodesClient<Channel>,
    name: &str,
    ttl_seconds: u32,
) -> Result<Exit, CtlError> {
    let request = CreateJoinTokenRequest { node: name.to_owned(), ttl_seconds };
    let token = client.create_join_token(timely(request)).await?.into_inner();
    if session.json {
        let expires_at = view::time(token.expires_at_ms);
        output::print_json(&json!({"token": token.token, "expires_at": expires_at}))?;
    } else {
        output::print(&format!("{}\n", output::escaped(&token.token)))?;
    }
    Ok(Exit::Done)
}
