//! The envelope of one preview: platform's policy ∩ seller's listing ∩ the preview's own wishes. Pure.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sha2::{Digest, Sha256};
use vitrine_crds::{
    Amount, PreviewPolicy, PreviewPolicySpec, PreviewPoolSpec, PreviewSandbox, PreviewSandboxSpec,
    SkuListing, TimeSpan,
    preview_policy::{BlockedSubject, IsolationTargets},
    preview_sandbox::{ListingRef, ResolvedEnvelope, TrustLevel},
    sku_listing::{EnvVar, Size, WritableFolder},
};

/// What a preview gets. Everything in it was checked: builders need no checks of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// How long it lives once ready.
    pub ttl: TimeSpan,
    /// The longest it may come to live by later extensions.
    pub ttl_cap: TimeSpan,
    /// From the slot to ready.
    pub provisioning_deadline: TimeSpan,
    /// How long the probe may look.
    pub proof_deadline: TimeSpan,
    /// Cores.
    pub cpu: Amount,
    /// Bytes of memory.
    pub memory: Amount,
    /// Bytes of scratch space.
    pub ephemeral_storage: Amount,
    /// The image by digest.
    pub image: String,
    /// The port of the product.
    pub port: u16,
    /// Command, if not the image's.
    pub command: Vec<String>,
    /// Arguments, if not the image's.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Folders in memory.
    pub writable: Vec<WritableFolder>,
    /// Path of the readiness check.
    pub health_path: Option<String>,
    /// Path that a visitor is sent to first.
    pub landing_path: String,
    /// Which listing this came from, `uid/generation`.
    pub listing: String,
    /// Who sells it.
    pub seller: String,
    /// The names that the preview may reach: its pod by the egress proxy, its script from the visitor's browser.
    pub egress: Vec<String>,
    /// The pages that may show it in a frame.
    pub frame_ancestors: Vec<String>,
    /// The RuntimeClass, if it is not the cluster's own.
    pub runtime_class: Option<String>,
    /// What the probe must find shut beside what it knows by itself.
    pub isolation: IsolationTargets,
}

/// A preview asks for more than it may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} asks for {asked}, allowed is {allowed}")]
pub struct Refusal {
    /// The field, as in the manifest that holds it.
    pub field: String,
    /// What it asks for.
    pub asked: String,
    /// What is allowed.
    pub allowed: String,
}

fn refuse<T>(field: &str, asked: impl ToString, allowed: impl ToString) -> Result<T, Refusal> {
    Err(Refusal {
        field: field.to_owned(),
        asked: asked.to_string(),
        allowed: allowed.to_string(),
    })
}

/// Intersects policy, listing and preview.
///
/// # Errors
/// The first field that asks for more than is allowed, with what it asks and what is allowed.
pub fn resolve(
    policy: &PreviewPolicySpec,
    listing: &SkuListing,
    preview: &PreviewSandbox,
) -> Result<Envelope, Refusal> {
    let template = &listing.spec.preview;
    let (ttl, ttl_cap) = time_to_live(policy, Some(listing), preview)?;

    let most = amounts(&policy.size.max, "PreviewPolicy spec.size.max")?;
    let offered = within("SkuListing spec.preview.size", &template.size, &most)?;
    let [cpu, memory, ephemeral_storage] = match &preview.spec.size {
        Some(size) => within("spec.size", size, &offered)?,
        None => offered,
    };

    names_within(
        "SkuListing spec.preview.egress",
        &template.egress,
        &policy.egress.allowed_names,
    )?;
    if let Some(egress) = &preview.spec.egress {
        names_within("spec.egress", egress, &template.egress)?;
    }

    if !policy.images.allows(&template.image, &listing.spec.seller) {
        let repositories = policy.images.of_seller(&listing.spec.seller);
        return refuse(
            "SkuListing spec.preview.image",
            &template.image,
            format!("only what is in {}", repositories.join(", ")),
        );
    }
    let runtime_class = runtime(policy, template.runtime_class.as_ref())?;

    let mut folders = Amount::whole(0);
    for folder in &template.writable {
        folders = folders.plus(amount("SkuListing spec.preview.writable.size", &folder.size)?);
    }
    if folders > memory {
        return refuse(
            "SkuListing spec.preview.writable",
            folders,
            format!("at most the memory, {memory}"),
        );
    }
    let Ok(port) = u16::try_from(template.port) else {
        return refuse("SkuListing spec.preview.port", template.port, "1024 to 65535");
    };

    Ok(Envelope {
        ttl,
        ttl_cap,
        provisioning_deadline: policy.provisioning_deadline,
        proof_deadline: policy.proof_deadline,
        cpu,
        memory,
        ephemeral_storage,
        image: template.image.clone(),
        port,
        command: template.command.clone(),
        args: template.args.clone(),
        env: template.env.clone(),
        writable: template.writable.clone(),
        health_path: template.health_path.clone(),
        landing_path: template.landing_path.clone().unwrap_or_else(|| "/".to_owned()),
        listing: listing_identity(listing),
        seller: listing.spec.seller.clone(),
        egress: preview.spec.egress.as_ref().unwrap_or(&template.egress).clone(),
        frame_ancestors: policy
            .embedding
            .allowed_origins
            .iter()
            .filter(|origin| {
                template
                    .embed_origins
                    .as_ref()
                    .is_none_or(|own| own.contains(origin))
            })
            .cloned()
            .collect(),
        runtime_class,
        isolation: policy.isolation.clone(),
    })
}

/// What every preview of a pool gets that asks for nothing narrower. Its pod may live as long as it may wait, and then as long as any
/// preview of it.
///
/// # Errors
/// As [`resolve`].
pub fn of_pool(
    policy: &PreviewPolicySpec,
    listing: &SkuListing,
    pool: &PreviewPoolSpec,
) -> Result<Envelope, Refusal> {
    let envelope = resolve(
        policy,
        listing,
        &visitor(&pool.listing_ref.name, pool.trust_level),
    )?;
    let longest = envelope.ttl_cap.as_secs().saturating_add(pool.max_age.as_secs());
    Ok(Envelope {
        ttl_cap: TimeSpan::from_secs(longest),
        ..envelope
    })
}

/// What every preview of a listing gets that asks for nothing narrower, whoever it is for.
///
/// # Errors
/// As [`resolve`].
pub fn of_listing(policy: &PreviewPolicySpec, listing: &SkuListing) -> Result<Envelope, Refusal> {
    resolve(
        policy,
        listing,
        &visitor(&listing.name_any(), TrustLevel::default()),
    )
}

/// A preview that asks for nothing of its own.
fn visitor(listing: &str, trust_level: TrustLevel) -> PreviewSandbox {
    PreviewSandbox::new(
        "",
        PreviewSandboxSpec {
            listing_ref: ListingRef {
                name: listing.to_owned(),
                uid: None,
                generation: None,
            },
            subject: String::new(),
            trust_level,
            network: None,
            ttl: None,
            size: None,
            egress: None,
        },
    )
}

/// Checks a preview's time to live alone: what an extension must pass too. Returns the time and its cap.
///
/// # Errors
/// If it is outside the range of the policy, or longer than the trust level or the seller allows.
pub fn time_to_live(
    policy: &PreviewPolicySpec,
    listing: Option<&SkuListing>,
    preview: &PreviewSandbox,
) -> Result<(TimeSpan, TimeSpan), Refusal> {
    let range = &policy.ttl;
    let level = policy.trust_levels.of(preview.spec.trust_level).max_ttl;
    let seller = listing.and_then(|listing| listing.spec.preview.max_ttl);
    let cap = [level, seller]
        .into_iter()
        .flatten()
        .fold(range.max, TimeSpan::min);
    let ttl = preview.spec.ttl.unwrap_or(range.default.min(cap));
    if ttl < range.min || ttl > cap {
        return refuse("spec.ttl", ttl, format!("{} to {cap}", range.min));
    }
    Ok((ttl, cap))
}

/// The RuntimeClass of a listing that asks for this one, or for none.
fn runtime(policy: &PreviewPolicySpec, asked: Option<&String>) -> Result<Option<String>, Refusal> {
    let runtimes = &policy.runtimes;
    match asked {
        None => Ok(runtimes.default.clone()),
        Some(name)
            if runtimes
                .default
                .iter()
                .chain(&runtimes.allowed)
                .any(|own| own == name) =>
        {
            Ok(Some(name.clone()))
        }
        Some(name) => {
            let all: Vec<_> = runtimes
                .default
                .iter()
                .chain(&runtimes.allowed)
                .cloned()
                .collect();
            let allowed = if all.is_empty() {
                "nothing".to_owned()
            } else {
                format!("only {}", all.join(", "))
            };
            refuse("SkuListing spec.preview.runtimeClass", name, allowed)
        }
    }
}

/// The block of a subject that is in force, if there is one: by whoever looks after the policy, or for what a preview did.
pub fn blocked<'a>(policy: &'a PreviewPolicy, subject: &str, now: Timestamp) -> Option<&'a BlockedSubject> {
    let by_abuse = policy.status.iter().flat_map(|status| &status.blocked_subjects);
    let mut blocks = policy.spec.blocked_subjects.iter().chain(by_abuse).peekable();
    blocks.peek()?;
    let hash = subject_hash(subject);
    let in_force = |block: &&BlockedSubject| block.until.as_ref().is_none_or(|until| until.0 > now);
    blocks.find(|block| block.sha256 == hash && in_force(block))
}

/// How a subject is named in a block: as `sha256sum` writes it, so that whoever blocks somebody needs no tool of ours.
pub fn subject_hash(subject: &str) -> String {
    hex::encode(Sha256::digest(subject))
}

/// Which listing, in which state: `uid/generation`.
pub fn listing_identity(listing: &SkuListing) -> String {
    format!(
        "{}/{}",
        listing.uid().unwrap_or_default(),
        listing.metadata.generation.unwrap_or_default()
    )
}

/// The uid in such a text.
pub fn listing_uid(identity: &str) -> &str {
    identity.split_once('/').map_or("", |(uid, _)| uid)
}

impl Envelope {
    /// The envelope that was frozen at admission. What a later change of policy or listing says is for new previews: the
    /// container's details come from the listing only while it is the very listing that was admitted.
    ///
    /// # Errors
    /// If the frozen text is no envelope (somebody wrote the status).
    pub fn thaw(
        frozen: &ResolvedEnvelope,
        listing: Option<&SkuListing>,
        isolation: &IsolationTargets,
    ) -> Result<Self, Refusal> {
        let [cpu, memory, ephemeral_storage] = amounts(&frozen.size, "status.envelope.size")?;
        let Ok(port) = u16::try_from(frozen.port) else {
            return refuse("status.envelope.port", frozen.port, "1024 to 65535");
        };
        let template = listing
            .filter(|l| listing_identity(l) == frozen.listing)
            .map(|l| &l.spec.preview);
        Ok(Self {
            ttl: frozen.ttl,
            ttl_cap: frozen.ttl_cap,
            provisioning_deadline: frozen.provisioning_deadline,
            proof_deadline: frozen.proof_deadline,
            cpu,
            memory,
            ephemeral_storage,
            image: frozen.image.clone(),
            port,
            command: template.map(|t| t.command.clone()).unwrap_or_default(),
            args: template.map(|t| t.args.clone()).unwrap_or_default(),
            env: template.map(|t| t.env.clone()).unwrap_or_default(),
            writable: template.map(|t| t.writable.clone()).unwrap_or_default(),
            health_path: template.and_then(|t| t.health_path.clone()),
            landing_path: frozen.landing_path.clone(),
            listing: frozen.listing.clone(),
            seller: frozen.seller.clone(),
            egress: frozen.egress.clone(),
            frame_ancestors: frozen.frame_ancestors.clone(),
            runtime_class: frozen.runtime_class.clone(),
            isolation: isolation.clone(),
        })
    }

    /// What is frozen in the preview's status at admission.
    pub fn resolved(&self) -> ResolvedEnvelope {
        ResolvedEnvelope {
            ttl: self.ttl,
            ttl_cap: self.ttl_cap,
            provisioning_deadline: self.provisioning_deadline,
            proof_deadline: self.proof_deadline,
            image: self.image.clone(),
            port: i32::from(self.port),
            landing_path: self.landing_path.clone(),
            listing: self.listing.clone(),
            seller: self.seller.clone(),
            egress: self.egress.clone(),
            frame_ancestors: self.frame_ancestors.clone(),
            runtime_class: self.runtime_class.clone(),
            size: Size {
                cpu: self.cpu.to_string(),
                memory: self.memory.to_string(),
                ephemeral_storage: self.ephemeral_storage.to_string(),
            },
        }
    }
}

fn amount(field: &str, text: &str) -> Result<Amount, Refusal> {
    text.parse()
        .or_else(|error: vitrine_crds::quantity::NotAQuantity| refuse(field, text, error))
}

fn amounts(size: &Size, field: &str) -> Result<[Amount; 3], Refusal> {
    Ok([
        amount(&format!("{field}.cpu"), &size.cpu)?,
        amount(&format!("{field}.memory"), &size.memory)?,
        amount(&format!("{field}.ephemeralStorage"), &size.ephemeral_storage)?,
    ])
}

fn within(field: &str, size: &Size, most: &[Amount; 3]) -> Result<[Amount; 3], Refusal> {
    let asked = amounts(size, field)?;
    for ((asked, most), part) in asked.iter().zip(most).zip(["cpu", "memory", "ephemeralStorage"]) {
        if asked > most {
            return refuse(&format!("{field}.{part}"), asked, format!("at most {most}"));
        }
    }
    Ok(asked)
}

fn names_within(field: &str, asked: &[String], allowed: &[String]) -> Result<(), Refusal> {
    match asked.iter().find(|name| !allowed.contains(name)) {
        None => Ok(()),
        Some(name) if allowed.is_empty() => refuse(field, format!("{name:?}"), "nothing"),
        Some(name) => refuse(field, format!("{name:?}"), format!("only {}", allowed.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use vitrine_crds::preview_sandbox::TrustLevel;

    use super::*;
    use crate::cell::fixtures::{listing, policy, preview};

    #[test]
    fn without_wishes_a_preview_gets_the_listing_and_the_default_time() {
        let envelope = resolve(&policy(), &listing(), &preview()).unwrap();
        assert_eq!(envelope.ttl, TimeSpan::from_secs(1200));
        assert_eq!(envelope.ttl_cap, TimeSpan::from_secs(1800));
        assert_eq!(envelope.memory.to_string(), "128Mi");
    }

    #[test]
    fn what_is_frozen_at_admission_thaws_to_the_same_envelope() {
        let envelope = resolve(&policy(), &listing(), &preview()).unwrap();
        let isolation = policy().isolation;
        assert_eq!(
            Envelope::thaw(&envelope.resolved(), Some(&listing()), &isolation).unwrap(),
            envelope
        );
        let mut changed = listing();
        changed.metadata.generation = Some(4);
        changed.spec.preview.args = vec!["--evil".into()];
        assert!(
            Envelope::thaw(&envelope.resolved(), Some(&changed), &isolation)
                .unwrap()
                .args
                .is_empty()
        );
    }

    #[test]
    fn a_refusal_names_field_asked_and_allowed() {
        let mut asks = preview();
        asks.spec.ttl = Some(TimeSpan::from_secs(7200));
        assert_eq!(
            resolve(&policy(), &listing(), &asks).unwrap_err().to_string(),
            "spec.ttl asks for 2h, allowed is 10m to 30m"
        );

        let mut asks = preview();
        asks.spec.size = Some(Size {
            cpu: "4".into(),
            memory: "64Mi".into(),
            ephemeral_storage: "16Mi".into(),
        });
        assert_eq!(
            resolve(&policy(), &listing(), &asks).unwrap_err().to_string(),
            "spec.size.cpu asks for 4, allowed is at most 100m"
        );

        let mut asks = preview();
        asks.spec.egress = Some(vec!["example.com".into()]);
        assert_eq!(
            resolve(&policy(), &listing(), &asks).unwrap_err().to_string(),
            "spec.egress asks for \"example.com\", allowed is nothing"
        );
    }

    #[test]
    fn a_listing_cannot_ask_for_more_than_the_platform_allows() {
        let mut greedy = listing();
        greedy.spec.preview.size.memory = "64Gi".into();
        assert_eq!(
            resolve(&policy(), &greedy, &preview()).unwrap_err().field,
            "SkuListing spec.preview.size.memory"
        );
        let mut greedy = listing();
        greedy.spec.preview.egress = vec!["evil.example".into()];
        assert_eq!(
            resolve(&policy(), &greedy, &preview()).unwrap_err().field,
            "SkuListing spec.preview.egress"
        );
        let mut greedy = listing();
        greedy.spec.preview.writable[0].size = "2Gi".into();
        assert_eq!(
            resolve(&policy(), &greedy, &preview()).unwrap_err().field,
            "SkuListing spec.preview.writable"
        );
    }

    #[test]
    fn a_preview_is_framed_by_pages_that_both_platform_and_seller_allow() {
        let mut policy = policy();
        let mut listing = listing();
        let framed = |policy: &_, listing: &_| resolve(policy, listing, &preview()).unwrap().frame_ancestors;
        assert!(framed(&policy, &listing).is_empty());
        policy.embedding.allowed_origins = vec!["https://a.example".into(), "https://b.example".into()];
        assert_eq!(framed(&policy, &listing).len(), 2);
        listing.spec.preview.embed_origins =
            Some(vec!["https://b.example".into(), "https://c.example".into()]);
        assert_eq!(framed(&policy, &listing), ["https://b.example"]);
        listing.spec.preview.embed_origins = Some(vec![]);
        assert!(framed(&policy, &listing).is_empty());
    }

    #[test]
    fn a_block_names_the_subject_by_its_hash_and_ends_at_its_time() {
        let mut policy = PreviewPolicy::new("default", policy());
        // printf %s mallory | sha256sum
        policy.spec.blocked_subjects = vec![BlockedSubject {
            sha256: "c0a497761b175379ed63397cc980546559faa84ca9cbeede773117c31508b6ac".to_owned(),
            until: Some(Time(Timestamp::from_second(1000).unwrap())),
            reason: None,
        }];
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(blocked(&policy, "mallory", at(999)).is_some());
        assert!(blocked(&policy, "mallory", at(1000)).is_none());
        assert!(blocked(&policy, "alice", at(1)).is_none());
        policy.spec.blocked_subjects[0].until = None;
        assert!(blocked(&policy, "mallory", at(i64::from(u32::MAX))).is_some());
        // The same by what one of its previews did.
        let block = std::mem::take(&mut policy.spec.blocked_subjects);
        assert!(blocked(&policy, "mallory", at(1)).is_none());
        policy.status.get_or_insert_default().blocked_subjects = block;
        assert!(blocked(&policy, "mallory", at(1)).is_some());
    }

    #[test]
    fn a_trust_levels_longest_time_narrows_the_platforms() {
        let mut strict = policy();
        strict.trust_levels.anonymous.max_ttl = Some(TimeSpan::from_secs(900));
        assert_eq!(
            resolve(&strict, &listing(), &preview()).unwrap().ttl_cap,
            TimeSpan::from_secs(900)
        );
        let mut known = preview();
        known.spec.trust_level = TrustLevel::SignedIn;
        assert_eq!(
            resolve(&strict, &listing(), &known).unwrap().ttl_cap,
            TimeSpan::from_secs(1800)
        );
    }

    #[test]
    fn the_sellers_longest_time_narrows_the_platforms() {
        let mut short = listing();
        short.spec.preview.max_ttl = Some(TimeSpan::from_secs(900));
        assert_eq!(
            resolve(&policy(), &short, &preview()).unwrap().ttl,
            TimeSpan::from_secs(900)
        );
        let mut asks = preview();
        asks.spec.ttl = Some(TimeSpan::from_secs(1200));
        assert_eq!(
            resolve(&policy(), &short, &asks).unwrap_err().allowed,
            "10m to 15m"
        );
    }

    #[test]
    fn images_come_from_the_platforms_repositories_alone() {
        let mut mirror = policy();
        assert!(resolve(&mirror, &listing(), &preview()).is_ok(), "anywhere");
        let image = listing().spec.preview.image;
        let (repository, _) = image.split_once('@').unwrap();
        let (folder, _) = repository.rsplit_once('/').unwrap();
        for (allowed, may) in [
            (repository, true),
            (folder, true),
            (&repository[..repository.len() - 1], false),
            (&folder[..folder.len() - 1], false),
            ("elsewhere.example", false),
        ] {
            mirror.images.repositories = vec![allowed.to_owned()];
            let resolved = resolve(&mirror, &listing(), &preview());
            assert_eq!(resolved.is_ok(), may, "{allowed}");
            if let Err(refusal) = resolved {
                assert_eq!(
                    refusal.to_string(),
                    format!(
                        "SkuListing spec.preview.image asks for {image}, allowed is only what is in {allowed}"
                    )
                );
            }
        }
    }

    #[test]
    fn a_seller_gets_no_other_sellers_images() {
        let (mut mirror, mut listing) = (policy(), listing());
        mirror.images.repositories = vec!["mirror.example/{seller}".to_owned()];
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (image, may) in [
            ("mirror.example/acme/app", true),
            ("mirror.example/acme", true),
            ("mirror.example/acmes/app", false),
            ("mirror.example/another/app", false),
            ("mirror.example/another/acme", false),
            ("mirror.example/{seller}/app", false),
        ] {
            listing.spec.seller = "acme".to_owned();
            listing.spec.preview.image = format!("{image}{digest}");
            let resolved = resolve(&mirror, &listing, &preview());
            assert_eq!(resolved.is_ok(), may, "{image}");
            if let Err(refusal) = resolved {
                assert_eq!(refusal.allowed, "only what is in mirror.example/acme");
            }
        }
    }

    #[test]
    fn a_listing_chooses_among_the_runtimes_that_are_allowed_and_never_out_of_the_default() {
        let (mut policy, mut listing) = (policy(), listing());
        let runtime = |policy: &_, listing: &_| resolve(policy, listing, &preview()).map(|e| e.runtime_class);
        assert_eq!(runtime(&policy, &listing), Ok(None));
        listing.spec.preview.runtime_class = Some("runc".into());
        let refusal = runtime(&policy, &listing).unwrap_err();
        assert_eq!(refusal.allowed, "nothing");
        policy.runtimes.default = Some("gvisor".into());
        let refusal = runtime(&policy, &listing).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "SkuListing spec.preview.runtimeClass asks for runc, allowed is only gvisor"
        );
        policy.runtimes.allowed = vec!["runc".into()];
        assert_eq!(runtime(&policy, &listing), Ok(Some("runc".into())));
        listing.spec.preview.runtime_class = None;
        assert_eq!(runtime(&policy, &listing), Ok(Some("gvisor".into())));
    }
}
