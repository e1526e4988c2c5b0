//! Publishes events beside the work: a visitor waits for a status, and nobody for an event. Writes Events.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder, Reporter};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// Events that may wait, in each lane. Beyond that the API server is so far behind that more of them would only hold it up longer.
const WAITING: usize = 1024;
/// After so many events of a lane its recorder is made anew. kube's remembers each for six minutes, to count what repeats, and takes three
/// kilobytes for that: at ten previews a second a third of the operator's memory. What repeats, repeats soon.
const REMEMBERED: usize = 64;
/// Events on their way at once, at most one an object: at 60 previews a second, two each, of some 30 ms.
const LANES: usize = 4;

enum Told {
    Event(Box<Event>, ObjectReference),
    /// No more will come; told back once all are published.
    End(oneshot::Sender<()>),
}

/// Who publishes; until it is dropped.
pub struct Herald {
    lanes: Vec<mpsc::Sender<Told>>,
    _work: JoinSet<()>,
}

impl Herald {
    /// Publishes in the name of this reporter.
    pub fn new(client: &kube::Client, reporter: &Reporter) -> Self {
        let mut work = JoinSet::new();
        let lanes = (0..LANES).map(|_| {
            let (tell, hear) = mpsc::channel(WAITING);
            work.spawn(publish(client.clone(), reporter.clone(), hear));
            tell
        });
        Self {
            lanes: lanes.collect(),
            _work: work,
        }
    }

    /// Has an event published about an object, after those that were told of it before; never waits.
    pub fn tell(&self, event: Event, about: ObjectReference) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(&about.uid);
        let lane = usize::try_from(hash % LANES as u64).unwrap_or_default();
        let told = Told::Event(Box::new(event), about);
        let Some(lane) = self.lanes.get(lane) else { return };
        if let Err(error) = lane.try_send(told) {
            tracing::warn!(%error, "an event is dropped");
        }
    }

    /// Waits until all that was told is published, but no longer than this.
    pub async fn finish(&self, patience: Duration) {
        let all = async {
            for lane in &self.lanes {
                let (tell, done) = oneshot::channel();
                // A lane ends with this, and with nothing else.
                let _ = lane.send(Told::End(tell)).await;
                let _ = done.await;
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("events are lost: the API server did not take them in time");
        }
    }
}

async fn publish(client: kube::Client, reporter: Reporter, mut hear: mpsc::Receiver<Told>) {
    let new = || Recorder::new(client.clone(), reporter.clone());
    let (mut recorder, mut remembered) = (new(), 0);
    while let Some(told) = hear.recv().await {
        match told {
            Told::Event(event, about) => {
                if remembered == REMEMBERED {
                    (recorder, remembered) = (new(), 0);
                }
                remembered += 1;
                // Logged, and stops nothing.
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::warn!(object = about.name, %error, "failed to publish an event");
                }
            }
            Told::End(tell) => {
                // Who waited may have lost patience.
                let _ = tell.send(());
                return;
            }
        }
    }
}
