//! A full cluster of a bench's own, with Vitrine in it as it is released.

use kube::Client;
use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, progress};
use vitrine_kit::{
    Result,
    images::{self, Build},
    install::{self, Options, Target},
    objects,
};

/// The namespace of the bench's shop.
pub const SHOP: &str = "bench";

/// Where a bench takes place; gone when it is dropped.
pub struct Ground {
    pub cluster: Cluster,
    pub client: Client,
}

impl Ground {
    /// Brings it up.
    pub async fn up() -> Result<Self> {
        let progress = progress::for_stderr(true);
        let operator = images::operator(Build::Optimised)?;
        let config = ClusterConfig::new(format!("bench-{}", std::process::id()), Level::Full);
        let cluster = Cluster::up(&config, Lifetime::Owned, &*progress)?;
        cluster.import_image(&operator)?;
        let target = Target {
            kubeconfig: cluster.kubeconfig().to_owned(),
            context: None,
        };
        install::install(
            &target,
            &Options::for_devcluster(&operator, "http://{label}.previews.localhost:1"),
            &*progress,
        )?;
        let client = target.client().await?;
        objects::shop(&client, SHOP).await?;
        Ok(Self { cluster, client })
    }
}

/// The middle one of these figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
