//! What pods show: who makes tickets, and what they are good for.

use std::path::Path;

use nimbus_api::RefusalCode;
use nimbus_api::proto::control::v1::tickets_client::TicketsClient;
use nimbus_api::proto::control::v1::{
    CreateTicketRequest, JobState, ListTicketsRequest, RevokeTicketRequest,
};
use nimbus_api::proto::node::v1::Claim;
use nimbus_control::CredentialsArgs;
use tonic::transport::Channel;

use crate::claims::apply_policy;
use crate::client::{self, Credentials, Node};
use crate::service::code;

async fn person(folder: &Path, org: &str) -> TicketsClient<Channel> {
    let out = folder.join(format!("{org}.json"));
    let args = CredentialsArgs {
        data_dir: client::data(folder),
        org: org.parse().unwrap(),
        user: "ann".parse().unwrap(),
        out: out.clone(),
    };
    nimbus_control::issue_credentials(&args).unwrap();
    TicketsClient::new(Credentials::read(&out).connect().await)
}

fn request(org: &str) -> CreateTicketRequest {
    CreateTicketRequest { parent: format!("orgs/{org}"), ..CreateTicketRequest::default() }
}

fn showing(container: &str, namespace: &str, ticket: &str) -> Claim {
    let mut claim = client::claim(container);
    claim.pod.as_mut().unwrap().namespace = namespace.to_owned();
    ticket.clone_into(&mut claim.ticket);
    claim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_says_whose_a_pod_is_and_carries_its_bundles() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 1).await;
    let mut acme = person(folder.path(), "acme").await;
    let asked = CreateTicketRequest { bundles: vec![b"{\"b\":1}".to_vec()], ..request("acme") };
    let ticket = acme.create_ticket(asked).await.unwrap().into_inner();
    assert!(ticket.secret.starts_with("nt1.") && ticket.secret.len() == 47, "{ticket:?}");
    assert_eq!((ticket.max_uses, ticket.uses, ticket.revoked_at_ms), (1, 0, 0));
    assert_eq!(ticket.expires_at_ms - ticket.created_at_ms, 3_600_000);
    let database = std::fs::read(client::data(folder.path()).join("control.db-wal")).unwrap();
    let secret = ticket.secret.as_bytes();
    assert!(!database.windows(secret.len()).any(|at| at == secret), "hashed at rest");

    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (claims, grant) = session.claim(showing("c1", "tickets", &ticket.secret)).await.unwrap();
    assert_eq!(claims.org.as_str(), "acme");
    assert_eq!(grant.spec.unwrap().bundles, [b"{\"b\":1}".to_vec()]);
    let mut sidecar = showing("c2", "tickets", &ticket.secret);
    sidecar.pod.as_mut().unwrap().sandbox = "sandbox-c1".to_owned();
    session.claim(sidecar).await.unwrap();
    let invalid = "claim.ticket_invalid";
    let other_pod = showing("c3", "tickets", &ticket.secret);
    assert_eq!(session.claim(other_pod).await.unwrap_err(), invalid, "used up");
    let guessed = showing("c3", "tickets", "nt1.guess");
    assert_eq!(session.claim(guessed).await.unwrap_err(), invalid);

    let mut tools = person(folder.path(), "tools").await;
    let foreign = tools.create_ticket(request("tools")).await.unwrap().into_inner();
    let of_rule = showing("c4", "ci", &foreign.secret);
    assert_eq!(session.claim(of_rule).await.unwrap_err(), invalid, "the policy says acme");
    let elsewhere = CreateTicketRequest { node: "nodes/n2".to_owned(), ..request("acme") };
    let elsewhere = acme.create_ticket(elsewhere).await.unwrap().into_inner();
    let claim = showing("c5", "tickets", &elsewhere.secret);
    assert_eq!(session.claim(claim).await.unwrap_err(), invalid);

    let name = format!("orgs/acme/jobs/{}", claims.job);
    let job = client::get(&admin, &name).await;
    assert_eq!(job.claimed.unwrap().ticket, ticket.name);
    assert_eq!(job.spec.unwrap().bundles.len(), 1);
    acme.revoke_ticket(RevokeTicketRequest { name: ticket.name.clone() }).await.unwrap();
    let mut late = showing("c6", "tickets", &ticket.secret);
    late.pod.as_mut().unwrap().sandbox = "sandbox-c1".to_owned();
    assert_eq!(session.claim(late).await.unwrap_err(), invalid, "revoked");
    assert_eq!(client::get(&admin, &name).await.state(), JobState::Leased, "what runs goes on");
    session.event(node.finished(&claims, Some(0), "")).await;
    session.acked(1).await;
    assert!(client::get(&admin, &name).await.spec.unwrap().bundles.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_made_listed_and_revoked_by_their_own_org() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let mut admin = TicketsClient::new(client::admin(folder.path()).await);
    let mut acme = person(folder.path(), "acme").await;
    let mut tools = person(folder.path(), "tools").await;
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(acme.create_ticket(request("acme")).await.unwrap().into_inner().name);
    }
    names.reverse();
    let mut listed = Vec::new();
    let parent = "orgs/acme".to_owned();
    let mut list = ListTicketsRequest { parent, page_size: 2, page_token: String::new() };
    loop {
        let page = acme.list_tickets(list.clone()).await.unwrap().into_inner();
        assert!(page.tickets.iter().all(|ticket| ticket.secret.is_empty()));
        listed.extend(page.tickets.into_iter().map(|ticket| ticket.name));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(listed, names, "newest first");

    let refused = tools.create_ticket(request("acme")).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestForbidden);
    list.page_token.clear();
    let foreign = tools.list_tickets(list).await.unwrap_err();
    assert_eq!(code(&foreign), RefusalCode::TicketNotFound);
    let revoke = RevokeTicketRequest { name: names[0].clone() };
    let foreign = tools.revoke_ticket(revoke.clone()).await.unwrap_err();
    let absent = RevokeTicketRequest { name: "orgs/tools/tickets/t1".to_owned() };
    let absent = tools.revoke_ticket(absent).await.unwrap_err();
    assert_eq!((code(&foreign), foreign.message()), (code(&absent), absent.message()));
    assert_eq!(code(&absent), RefusalCode::TicketNotFound);
    let revoked = admin.revoke_ticket(revoke.clone()).await.unwrap().into_inner();
    assert!(revoked.revoked_at_ms > 0);
    assert_eq!(acme.revoke_ticket(revoke).await.unwrap().into_inner(), revoked, "idempotent");

    for bad in [
        CreateTicketRequest { max_uses: 1001, ..request("acme") },
        CreateTicketRequest { ttl_seconds: 604_801, ..request("acme") },
        CreateTicketRequest { node: "n1".to_owned(), ..request("acme") },
        CreateTicketRequest { bundles: vec![vec![]], ..request("acme") },
    ] {
        let refused = acme.create_ticket(bad).await.unwrap_err();
        assert_eq!(code(&refused), RefusalCode::RequestInvalid);
    }
    let node = Node::join(folder.path(), "n1").await;
    let mut node = TicketsClient::new(node.credentials.connect().await);
    let refused = node.create_ticket(request("acme")).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestForbidden);
    server.stop().await;
}
