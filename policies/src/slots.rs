//! Slots: Leases whose creation is the compare-and-set that limits how many previews live at once. Pure.
//!
//! A slot's name is dimension + full SHA-256 of its key + index. The key itself is stored beside and compared, so that a
//! collision is refused rather than shared. No ownerReferences: they would be collected across namespaces (attacks, 18).

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{ResourceExt, api::ObjectMeta};
use vitrine_crds::{
    PreviewPolicySpec, PreviewSandbox, SkuListing, preview_policy::Ceilings, preview_sandbox::TrustLevel,
};

use crate::names;

/// On a slot: what its name was made from.
pub const KEY_ANNOTATION: &str = "vitrine.dev/slot-key";
/// On a slot: the same, shortened, so that the slots of one key can be listed. What counts is the annotation.
pub const KEY_LABEL: &str = KEY_ANNOTATION;
/// On a slot: the uid of the preview or cell that holds it, so that its slots can be listed. What counts is `holderIdentity`.
pub const HOLDER_LABEL: &str = "vitrine.dev/slot-holder";
/// On a slot: which dimension it limits.
pub const DIMENSION_LABEL: &str = "vitrine.dev/slot";

/// Something that previews are limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// The person or session that a preview is for.
    Subject,
    /// The network that the request came from.
    Network,
    /// The listing that is previewed.
    Listing,
    /// Who sells it.
    Seller,
    /// The whole cluster.
    Cluster,
}

impl Dimension {
    /// All of them, the narrowest first.
    pub const ALL: [Self; 5] = [
        Self::Subject,
        Self::Network,
        Self::Listing,
        Self::Seller,
        Self::Cluster,
    ];

    /// The word in names and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Network => "network",
            Self::Listing => "listing",
            Self::Seller => "seller",
            Self::Cluster => "cluster",
        }
    }

    /// How many slots a preview of this trust level may find in this dimension.
    pub fn limit(self, policy: &PreviewPolicySpec, level: TrustLevel) -> i32 {
        let (limits, level) = (&policy.limits, policy.trust_levels.of(level));
        match self {
            Self::Subject => level.per_subject.unwrap_or(limits.per_subject),
            Self::Network => level.per_network.unwrap_or(limits.per_network),
            Self::Listing => limits.per_listing,
            Self::Seller => limits.per_seller,
            Self::Cluster => limits.cluster,
        }
    }

    /// The ceiling of this dimension.
    pub const fn ceiling(self, ceilings: &Ceilings) -> i32 {
        match self {
            Self::Subject => ceilings.subject,
            Self::Network => ceilings.network,
            Self::Listing => ceilings.listing,
            Self::Seller => ceilings.seller,
            Self::Cluster => ceilings.cluster,
        }
    }

    /// The ceiling of this dimension, to be changed.
    pub const fn ceiling_mut(self, ceilings: &mut Ceilings) -> &mut i32 {
        match self {
            Self::Subject => &mut ceilings.subject,
            Self::Network => &mut ceilings.network,
            Self::Listing => &mut ceilings.listing,
            Self::Seller => &mut ceilings.seller,
            Self::Cluster => &mut ceilings.cluster,
        }
    }
}

/// What the slots of the cluster are named after: there is one cluster.
pub const WHOLE_CLUSTER: &str = "cluster";

/// Whom a preview is for, as far as there are limits for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visitor<'a> {
    /// The subject.
    pub subject: &'a str,
    /// The network, if it is known.
    pub network: Option<&'a str>,
}

impl<'a> From<&'a PreviewSandbox> for Visitor<'a> {
    fn from(preview: &'a PreviewSandbox) -> Self {
        Self {
            subject: &preview.spec.subject,
            network: preview.spec.network.as_deref(),
        }
    }
}

/// What a preview is limited by: one text a dimension, and none where the dimension does not apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keys<'a>([Option<&'a str>; 5]);

impl<'a> Keys<'a> {
    /// Of a preview of this listing (by uid) and seller.
    pub fn new(visitor: impl Into<Visitor<'a>>, listing_uid: &'a str, seller: &'a str) -> Self {
        let Visitor { subject, network } = visitor.into();
        Self([
            Some(subject),
            network,
            Some(listing_uid),
            Some(seller),
            Some(WHOLE_CLUSTER),
        ])
    }

    /// Of everything that a listing's previews have in common.
    pub fn of_listing(listing_uid: &'a str, seller: &'a str) -> Self {
        Self([None, None, Some(listing_uid), Some(seller), Some(WHOLE_CLUSTER)])
    }

    /// Of a preview in a cell that holds what its listing's previews have in common.
    pub fn of_visitor(visitor: impl Into<Visitor<'a>>) -> Self {
        let Visitor { subject, network } = visitor.into();
        Self([Some(subject), network, None, None, None])
    }

    /// A slot in each dimension that applies, of as many as there are in that dimension.
    pub fn demands(&self, limit: impl Fn(Dimension) -> i32) -> Vec<Demand> {
        self.each()
            .map(|(dimension, key)| Demand {
                dimension,
                key: key.to_owned(),
                limit: limit(dimension),
            })
            .collect()
    }

    /// Each dimension that applies, with its text.
    pub fn each(&self) -> impl Iterator<Item = (Dimension, &'a str)> + use<'a> {
        let keys = self.0;
        Dimension::ALL
            .into_iter()
            .zip(keys)
            .filter_map(|(dimension, key)| Some((dimension, key?)))
    }
}

/// A slot that a preview needs: any of the first `limit` of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The dimension.
    pub dimension: Dimension,
    /// The text that slots of this key have in common.
    pub key: String,
    /// How many there may be.
    pub limit: i32,
}

/// The slots that a preview of a listing needs under a policy.
pub fn demands(policy: &PreviewPolicySpec, listing: &SkuListing, preview: &PreviewSandbox) -> Vec<Demand> {
    let uid = listing.uid().unwrap_or_default();
    let keys = Keys::new(preview, &uid, &listing.spec.seller);
    keys.demands(|dimension| dimension.limit(policy, preview.spec.trust_level))
}

/// The slots that a preview needs in a cell that holds what its listing's previews have in common.
pub fn own_demands(policy: &PreviewPolicySpec, preview: &PreviewSandbox) -> Vec<Demand> {
    let keys = Keys::of_visitor(preview);
    keys.demands(|dimension| dimension.limit(policy, preview.spec.trust_level))
}

/// The ceilings that a policy needs: the highest limit of each dimension.
pub fn ceilings(policy: &PreviewPolicySpec) -> Ceilings {
    let mut ceilings = Ceilings::default();
    for dimension in Dimension::ALL {
        let levels = [
            TrustLevel::Anonymous,
            TrustLevel::SignedIn,
            TrustLevel::PaymentVerified,
        ];
        let highest = levels
            .map(|level| dimension.limit(policy, level))
            .into_iter()
            .max();
        *dimension.ceiling_mut(&mut ceilings) = highest.unwrap_or_default();
    }
    ceilings
}

/// The ceilings once everything that `wanted` needs is raised, and nothing lowered.
pub fn raised(now: &Ceilings, wanted: &Ceilings) -> Ceilings {
    let mut raised = *now;
    for dimension in Dimension::ALL {
        let ceiling = dimension.ceiling_mut(&mut raised);
        *ceiling = (*ceiling).max(dimension.ceiling(wanted));
    }
    raised
}

/// Which indices may be tried when `above` slots at and over the limit are held by others: as many fewer.
///
/// They come in an order of the preview's own, so that two operators that serve one preview try the same slot first, and
/// those that serve two previews seldom do.
pub fn indices(limit: i32, above: i32, owner_uid: &str) -> Vec<i32> {
    let room = limit.saturating_sub(above).max(0);
    let first = owner_uid.bytes().fold(0_i32, |sum, byte| {
        (sum.wrapping_mul(31) + i32::from(byte)) & 0xffff
    });
    (0..room).map(|index| (index + first) % room).collect()
}

/// A slot's name in parts: half as long as its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// What it limits.
    pub dimension: Dimension,
    /// SHA-256 of its key.
    digest: [u8; 32],
    /// Which of those of its key.
    pub index: i32,
}

impl Name {
    /// Of a text that [`name`] has made, and of no other.
    pub fn read(text: &str) -> Option<Self> {
        let (dimension, index) = parse(text)?;
        let digest = text.strip_prefix(dimension.as_str())?.strip_prefix('-')?;
        let mut name = Self {
            dimension,
            digest: [0; 32],
            index,
        };
        hex::decode_to_slice(digest.rsplit_once('-')?.0, &mut name.digest).ok()?;
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}-{}",
            self.dimension.as_str(),
            hex::encode(self.digest),
            self.index
        )
    }
}

/// The dimension and the index that are in a slot's name.
pub fn parse(name: &str) -> Option<(Dimension, i32)> {
    let (dimension, rest) = name.split_once('-')?;
    let dimension = Dimension::ALL.into_iter().find(|d| d.as_str() == dimension)?;
    Some((dimension, rest.rsplit_once('-')?.1.parse().ok()?))
}

/// The name of the slot with this index.
pub fn name(dimension: Dimension, key: &str, index: i32) -> String {
    format!("{}-{index}", stem(dimension, key))
}

/// What the names of all slots of a key begin with: an index and a dash before it follow.
pub fn stem(dimension: Dimension, key: &str) -> String {
    format!(
        "{}-{}",
        dimension.as_str(),
        names::digest(&[dimension.as_str(), key])
    )
}

/// What [`KEY_LABEL`] says: label values have 63 characters at most, and these are as hard to meet twice as a uid.
pub fn key_label(dimension: Dimension, key: &str) -> String {
    let mut digest = names::digest(&[dimension.as_str(), key]);
    digest.truncate(32);
    digest
}

/// Who holds slots: a preview, or a cell that waits for previews.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The uid of the preview, or of the cell's namespace.
    pub uid: String,
    /// Where to look for it: an annotation of the slot.
    whose: (&'static str, String),
}

impl Owner {
    /// A stored preview.
    pub fn preview(preview: &PreviewSandbox) -> Self {
        let name = format!(
            "{}/{}",
            preview.namespace().unwrap_or_default(),
            preview.name_any()
        );
        Self {
            uid: preview.uid().unwrap_or_default(),
            whose: (names::PREVIEW_ANNOTATION, name),
        }
    }

    /// A cell, by the name and uid of its namespace.
    pub fn cell(name: &str, uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            whose: (names::CELL_ANNOTATION, name.to_owned()),
        }
    }
}

/// The slot as it is created for whoever is to hold it.
pub fn lease(namespace: &str, dimension: Dimension, key: &str, index: i32, owner: &Owner) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name(dimension, key, index)),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([
                (DIMENSION_LABEL.to_owned(), dimension.as_str().to_owned()),
                (KEY_LABEL.to_owned(), key_label(dimension, key)),
                (HOLDER_LABEL.to_owned(), owner.uid.clone()),
                ("app.kubernetes.io/managed-by".to_owned(), "vitrine".to_owned()),
            ])),
            annotations: Some(BTreeMap::from([
                (KEY_ANNOTATION.to_owned(), key.to_owned()),
                (owner.whose.0.to_owned(), owner.whose.1.clone()),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(owner.uid.clone()),
            ..LeaseSpec::default()
        }),
    }
}

/// Who holds an existing slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Who asks: an earlier attempt of ours got it.
    Us,
    /// Somebody else.
    Other,
    /// The same name for another key: a collision, or somebody else's object.
    Foreign,
}

/// Reads who holds a slot.
pub fn holder(lease: &Lease, key: &str, owner_uid: &str) -> Holder {
    if lease.annotations().get(KEY_ANNOTATION).map(String::as_str) != Some(key) {
        return Holder::Foreign;
    }
    match lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) {
        Some(uid) if uid == owner_uid => Holder::Us,
        _ => Holder::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::fixtures::{listing, policy, preview};

    #[test]
    fn a_name_in_parts_is_the_same_name_and_another_text_is_none() {
        let text = name(Dimension::Network, "198.51.100.0/24", 12);
        assert_eq!(Name::read(&text).unwrap().to_string(), text);
        assert_ne!(
            Name::read(&text),
            Name::read(&name(Dimension::Network, "198.51.100.0/24", 2))
        );
        for other in [
            "network-12".to_owned(),
            text.to_uppercase(),
            text.replace("-12", "-012"),
            format!("{text}-"),
            format!("x{text}"),
        ] {
            assert_eq!(Name::read(&other), None, "{other}");
        }
    }

    #[test]
    fn a_slot_names_its_key_in_full_and_its_holder() {
        let owner = Owner::preview(&preview());
        let lease = lease("vitrine-slots", Dimension::Subject, "alice", 0, &owner);
        assert_eq!(
            lease.name_any(),
            format!("subject-{}-0", names::digest(&["subject", "alice"]))
        );
        assert_eq!(holder(&lease, "alice", &preview().uid().unwrap()), Holder::Us);
        assert_eq!(holder(&lease, "alice", "another"), Holder::Other);
        assert_eq!(holder(&lease, "bob", &preview().uid().unwrap()), Holder::Foreign);
        assert!(lease.metadata.owner_references.is_none());
        assert_eq!(parse(&lease.name_any()), Some((Dimension::Subject, 0)));
        assert_eq!(parse("leader"), None);
    }

    #[test]
    fn a_preview_without_a_network_takes_no_slot_of_one() {
        let mut preview = preview();
        let dimensions = |preview: &_| -> Vec<_> {
            demands(&policy(), &listing(), preview)
                .iter()
                .map(|d| d.dimension)
                .collect()
        };
        assert!(!dimensions(&preview).contains(&Dimension::Network));
        preview.spec.network = Some("203.0.113.0/24".into());
        assert_eq!(dimensions(&preview), Dimension::ALL);
    }

    #[test]
    fn a_trust_level_takes_the_place_of_a_limit_and_the_ceiling_covers_every_level() {
        let mut policy = policy();
        policy.trust_levels.signed_in.per_subject = Some(3);
        assert_eq!(Dimension::Subject.limit(&policy, TrustLevel::Anonymous), 1);
        assert_eq!(Dimension::Subject.limit(&policy, TrustLevel::SignedIn), 3);
        assert_eq!(ceilings(&policy).subject, 3);
        let before = Ceilings {
            subject: 9,
            ..Ceilings::default()
        };
        assert_eq!(raised(&before, &ceilings(&policy)).subject, 9);
        assert_eq!(raised(&before, &ceilings(&policy)).cluster, policy.limits.cluster);
    }

    #[test]
    fn holders_above_a_lowered_limit_leave_fewer_indices() {
        let mut tried = indices(5, 2, "a");
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
        assert!(indices(2, 2, "a").is_empty());
        assert!(indices(2, 7, "a").is_empty());
    }
}
