//! Reads the audit log of a development cluster: which writes were made, by whom, on what, when. Pure but for reading a file.
//!
//! The cluster's audit policy records writes only, each once it is answered, and few of them with bodies. Dry runs write nothing and are
//! left out.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// One write, as the API server answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When the API server got it.
    pub received: Timestamp,
    /// When it was answered.
    pub answered: Timestamp,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The resource, like `pods`.
    pub resource: String,
    /// The subresource, like `status`.
    pub subresource: Option<String>,
    /// The object's namespace, if it has one.
    pub namespace: Option<String>,
    /// The object's name, if the request told it.
    pub name: Option<String>,
    /// Who wrote: the impersonated user where one was.
    pub user: String,
    /// What the writer called itself.
    pub agent: String,
    /// The answer's HTTP status.
    pub code: u16,
}

impl Write {
    /// Whether it took effect.
    pub const fn is_done(&self) -> bool {
        self.code >= 200 && self.code < 300
    }

    /// The writes of leader election, which go on for ever, and of events, which aim at people.
    pub fn is_aside(&self) -> bool {
        self.resource == "events" || (self.resource == "leases" && self.name.as_deref() == Some(LEADER_LEASE))
    }

    /// What kind of write it is, like `update previewsandboxes/status`.
    pub fn label(&self) -> String {
        let slash = if self.subresource.is_some() { "/" } else { "" };
        let subresource = self.subresource.as_deref().unwrap_or_default();
        format!("{} {}{slash}{subresource}", self.verb, self.resource)
    }
}

/// The Lease of the operator's leadership.
const LEADER_LEASE: &str = "vitrine-operator";

/// A moment of an audit log; by default its beginning.
///
/// The API server answers, and tells watchers, before it logs: what the log did not hold at that moment may have happened before it.
/// So what comes later is told by when it was received, and the length only saves reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// How far it was written, in bytes.
    length: u64,
    at: Timestamp,
}

/// This moment of an audit log that a server of this machine writes, whole lines at a time.
///
/// # Errors
/// If there is no such file.
pub fn mark(path: &Path) -> Result<Mark> {
    mark_at(path, Timestamp::now())
}

fn mark_at(path: &Path, at: Timestamp) -> Result<Mark> {
    let file = std::fs::metadata(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(Mark {
        length: file.len(),
        at,
    })
}

/// The writes of an audit log that were received since a mark, oldest answer first.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path, since: Mark) -> Result<Vec<Write>> {
    let mut writes = parse(&text(path, since)?);
    writes.retain(|write| write.received >= since.at);
    Ok(writes)
}

fn text(path: &Path, since: Mark) -> Result<String> {
    let text = || {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(since.length))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    text().map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// What a write has made of an object, where the cluster keeps that.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The resource, like `namespaces`.
    pub resource: String,
    /// The object as the write was answered, or its metadata if only that was asked for.
    pub object: Value,
}

/// What the writes of an audit log that were received since a mark, and took effect, have made of their objects, in no order.
///
/// # Errors
/// If the file cannot be read.
pub fn written(path: &Path, since: Mark) -> Result<Vec<Written>> {
    let text = text(path, since)?;
    let whole = text.lines().filter(|line| line.contains(ANSWERED));
    let events = whole.filter_map(|line| serde_json::from_str::<WholeEvent>(line).ok());
    Ok(events.filter_map(|whole| whole.written(since)).collect())
}

/// Only what was written whole has this.
const ANSWERED: &str = r#""responseObject""#;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WholeEvent {
    #[serde(flatten)]
    event: Event,
    response_object: Value,
}

impl WholeEvent {
    fn written(self, since: Mark) -> Option<Written> {
        let is_real = self.event.is_real();
        let write = self.event.write()?;
        let counts = is_real && write.is_done() && write.received >= since.at;
        counts.then_some(Written {
            resource: write.resource,
            object: self.response_object,
        })
    }
}

/// The writes in the text of an audit log, oldest answer first. A last line that is still being written is left out.
pub fn parse(text: &str) -> Vec<Write> {
    let mut writes: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Event>(line).ok())
        .filter(Event::is_real)
        .filter_map(Event::write)
        .collect();
    writes.sort_by_key(|write| write.answered);
    writes
}

/// How many of each kind.
pub fn count<'a>(writes: impl IntoIterator<Item = &'a Write>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for write in writes {
        *counts.entry(write.label()).or_default() += 1;
    }
    counts
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    #[serde(default, rename = "requestURI")]
    request_uri: String,
    verb: String,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
    #[serde(default)]
    user: User,
    impersonated_user: Option<User>,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize)]
struct ObjectRef {
    resource: String,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

impl Event {
    /// Whether it tells how something was answered that was not only tried.
    fn is_real(&self) -> bool {
        self.stage == "ResponseComplete" && !self.request_uri.contains("dryRun=")
    }

    /// `None` for what is about no object.
    fn write(self) -> Option<Write> {
        let object = self.object_ref?;
        Some(Write {
            received: self.request_received_timestamp,
            answered: self.stage_timestamp,
            verb: self.verb,
            resource: object.resource,
            subresource: object.subresource,
            namespace: object.namespace,
            name: object.name,
            user: self.impersonated_user.unwrap_or(self.user).username,
            agent: self.user_agent,
            code: self.response_status.map_or(0, |status| status.code),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LOG: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","stage":"ResponseComplete","requestURI":"/apis/coordination.k8s.io/v1/namespaces/vitrine-slots/leases","verb":"create","user":{"username":"admin","groups":["system:masters"]},"impersonatedUser":{"username":"operator-a"},"sourceIPs":["127.0.0.1"],"userAgent":"one","objectRef":{"resource":"leases","namespace":"vitrine-slots","name":"subject-x-0","apiGroup":"coordination.k8s.io","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":201},"requestReceivedTimestamp":"2026-11-21T10:00:02.000000Z","stageTimestamp":"2026-11-21T10:00:02.500000Z"}
{"kind":"Event","stage":"ResponseComplete","verb":"update","user":{"username":"admin"},"userAgent":"two","objectRef":{"resource":"previewsandboxes","subresource":"status","namespace":"shop","name":"try"},"responseStatus":{"code":409},"requestReceivedTimestamp":"2026-11-21T10:00:01.000000Z","stageTimestamp":"2026-11-21T10:00:01.100000Z"}
{"kind":"Event","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/pods?dryRun=All","verb":"create","user":{"username":"admin"},"objectRef":{"resource":"pods","namespace":"shop"},"responseStatus":{"code":201},"requestReceivedTimestamp":"2026-11-21T10:00:01.000000Z","stageTimestamp":"2026-11-21T10:00:01.100000Z"}
{"kind":"Event","stage":"ResponseStarted","verb":"delete","user":{"username":"admin"},"objectRef":{"resource":"pods"},"requestReceivedTimestamp":"2026-11-21T10:00:01.000000Z","stageTimestamp":"2026-11-21T10:00:01.100000Z"}
{"kind":"Event","stage":"Respon"#;

    #[test]
    fn writes_are_read_in_the_order_of_their_answers() {
        let writes = parse(LOG);
        let labels: Vec<_> = writes.iter().map(Write::label).collect();
        assert_eq!(labels, ["update previewsandboxes/status", "create leases"]);
        let lease = &writes[1];
        assert_eq!((lease.user.as_str(), lease.agent.as_str()), ("operator-a", "one"));
        assert_eq!(lease.name.as_deref(), Some("subject-x-0"));
        assert_eq!(lease.namespace.as_deref(), Some("vitrine-slots"));
        assert_eq!(
            lease.answered,
            "2026-11-21T10:00:02.5Z".parse::<Timestamp>().unwrap()
        );
        assert!(lease.is_done() && !writes[0].is_done());
        assert_eq!(writes[0].user, "admin");
    }

    #[test]
    fn from_a_mark_on_only_what_came_later_is_read() {
        let path = std::env::temp_dir().join(format!("vitrine-audit-{}", std::process::id()));
        let (first, later) = LOG.split_at(LOG.find('\n').unwrap() + 1);
        std::fs::write(&path, first).unwrap();
        let at = |time: &str| mark_at(&path, time.parse().unwrap()).unwrap();
        let between = [at("2026-11-21T10:00:00.5Z"), at("2026-11-21T10:00:01.05Z")];
        std::fs::write(&path, [first, later].concat()).unwrap();
        let all = read(&path, Mark::default()).unwrap();
        let [since, logged_late] = between.map(|mark| read(&path, mark).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(all, parse(LOG));
        assert_eq!(since, parse(later));
        assert_eq!(since.len(), 1);
        assert_eq!(logged_late, [], "received before, logged afterwards");
        assert!(mark(&path).is_err(), "it is gone");
    }

    #[test]
    fn what_was_written_is_read_where_it_was_kept() {
        let line = |code: u16, answer: &str| {
            let event = json!({
                "stage": "ResponseComplete", "requestURI": format!("/api/v1/namespaces/a{answer}"), "verb": "patch",
                "requestReceivedTimestamp": "2026-11-21T10:00:02.000000Z", "stageTimestamp": "2026-11-21T10:00:02.500000Z",
                "objectRef": {"resource": "namespaces", "name": "a"}, "responseStatus": {"code": code},
                "responseObject": {"metadata": {"name": "a", "resourceVersion": "7"}}
            });
            format!("{event}\n")
        };
        let path = std::env::temp_dir().join(format!("vitrine-audit-whole-{}", std::process::id()));
        std::fs::write(
            &path,
            [&line(200, ""), &line(409, ""), &line(200, "?dryRun=All"), LOG].concat(),
        )
        .unwrap();
        let all = written(&path, Mark::default()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let object = json!({"metadata": {"name": "a", "resourceVersion": "7"}});
        let resource = "namespaces".to_owned();
        assert_eq!(all, [Written { resource, object }]);
    }

    #[test]
    fn writes_are_counted_by_kind() {
        let counts = count(&parse(LOG));
        assert_eq!(counts.get("create leases"), Some(&1));
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn leadership_and_events_stand_aside_and_slots_do_not() {
        let mut write = parse(LOG).remove(1);
        assert!(!write.is_aside());
        write.name = Some(LEADER_LEASE.to_owned());
        assert!(write.is_aside());
        write.resource = "events".to_owned();
        assert!(write.is_aside());
    }
}
