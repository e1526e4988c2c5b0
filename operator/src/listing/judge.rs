//! Whether a listing is published, and why not. Pure.

use jiff::Timestamp;
use kube::ResourceExt;
use vitrine_commerce::money::Currency;
use vitrine_crds::{
    PreviewPolicy, SkuListing, conditions,
    preview_policy::SignatureRule,
    sku_listing::{PUBLISHED, PublishedReason, Sale},
};
use vitrine_policies::envelope;

/// Why, by the closed list and in a sentence.
pub type Verdict = (PublishedReason, String);

/// Judges a listing by what stands in it, by the platform's policy, and by the other listings that there are.
pub fn judge<'a>(
    listing: &SkuListing,
    policy: Option<&PreviewPolicy>,
    all: impl IntoIterator<Item = &'a SkuListing>,
) -> Verdict {
    let alone = alone(listing, policy);
    if alone.0 != PublishedReason::Valid {
        return alone;
    }
    let others = all.into_iter().filter(|other| goes_before(other, listing));
    let mut sellers = others.filter(|other| self::alone(other, policy).0 == PublishedReason::Valid);
    let Some(other) = sellers.next() else {
        return alone;
    };
    let message = format!(
        "{}/{} sells SKU {:?} of seller {:?}: remove one of the two, or its spec.sale",
        other.namespace().unwrap_or_default(),
        other.name_any(),
        listing.spec.sku,
        listing.spec.seller
    );
    (PublishedReason::SkuTaken, message)
}

/// Judges a listing as if there were no other.
fn alone(listing: &SkuListing, policy: Option<&PreviewPolicy>) -> Verdict {
    let Some(sale) = &listing.spec.sale else {
        let message = "it says how it is previewed, and not how it is sold (spec.sale)";
        return (PublishedReason::NotForSale, message.to_owned());
    };
    if let Err(message) = sound(sale, &listing.spec.version) {
        return (PublishedReason::SaleUnsound, message);
    }
    let Some(policy) = policy else {
        let message = "the cluster has no PreviewPolicy named \"default\"";
        return (PublishedReason::PolicyNotFound, message.to_owned());
    };
    if let Err(refusal) = envelope::of_listing(&policy.spec, listing) {
        return (PublishedReason::OutsideEnvelope, refusal.to_string());
    }
    match policy.spec.publishing.signature {
        SignatureRule::Optional => {
            let message = "shops sell it; nobody has looked for a signature of it (PreviewPolicy spec.publishing.signature)";
            (PublishedReason::Valid, message.to_owned())
        }
    }
}

/// Whether what the schema cannot judge makes sense.
fn sound(sale: &Sale, version: &str) -> Result<(), String> {
    let versions: semver::VersionReq = sale.versions.parse().map_err(|error| {
        format!(
            "spec.sale.versions {:?} is no range of versions: {error}",
            sale.versions
        )
    })?;
    let offered: semver::Version = version
        .parse()
        .map_err(|error| format!("spec.version {version:?} is no version: {error}"))?;
    if !versions.matches(&offered) {
        return Err(format!(
            "spec.version {version} is not within spec.sale.versions {:?}: who buys it could not use it",
            sale.versions
        ));
    }
    for (index, price) in sale.prices.iter().flatten().enumerate() {
        if let Err(error) = price.currency.parse::<Currency>() {
            return Err(format!("spec.sale.prices[{index}].currency: {error}"));
        }
    }
    Ok(())
}

/// Whether another listing has the SKU before this one: what is sold already stays with who sells it, however old an object is that would sell it
/// too from now on; else the older one has it.
fn goes_before(other: &SkuListing, listing: &SkuListing) -> bool {
    let rank = |listing: &SkuListing| {
        let status = listing.status.as_ref();
        // Also of what it said before: a seller who changes something does not lose it meanwhile.
        let sells = status.is_some_and(|status| conditions::is_true(&status.conditions, PUBLISHED));
        let made = listing.metadata.creation_timestamp.as_ref();
        (!sells, made.map_or(Timestamp::MAX, |made| made.0), listing.uid())
    };
    is_same(other, listing)
        && other.uid() != listing.uid()
        && other.metadata.deletion_timestamp.is_none()
        && rank(other) < rank(listing)
}

/// Whether two listings are of one SKU.
pub fn is_same(one: &SkuListing, other: &SkuListing) -> bool {
    one.spec.seller == other.spec.seller && one.spec.sku == other.spec.sku
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn listing(uid: &str, made: &str, changed: &Value) -> SkuListing {
        let mut listing = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "SkuListing",
            "metadata": {"name": "notes", "namespace": uid, "uid": uid, "generation": 1, "creationTimestamp": made},
            "spec": {
                "sku": "notes", "seller": "acme", "version": "1.4.0",
                "preview": {
                    "image": format!("mirror.example/notes@sha256:{}", "0".repeat(64)), "port": 8090,
                    "size": {"cpu": "100m", "memory": "64Mi", "ephemeralStorage": "16Mi"},
                },
                "sale": {"title": "Notes", "versions": ">=1.2, <2", "prices": [{"currency": "EUR", "minor": 2000}]},
            },
        });
        for (field, value) in changed.as_object().into_iter().flatten() {
            *listing.pointer_mut(field).unwrap() = value.clone();
        }
        serde_json::from_value(listing).unwrap()
    }

    fn policy(cpu: &str) -> PreviewPolicy {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPolicy", "metadata": {"name": "default"},
            "spec": {
                "ttl": {"min": "1m", "max": "1h", "default": "20m"},
                "size": {"max": {"cpu": cpu, "memory": "1Gi", "ephemeralStorage": "1Gi"}},
                "isolation": {"internet": ["1.1.1.1:443"]},
            },
        }))
        .unwrap()
    }

    fn judged(listing: &SkuListing, others: &[&SkuListing]) -> Verdict {
        judge(
            listing,
            Some(&policy("1")),
            others.iter().copied().chain([listing]),
        )
    }

    #[test]
    fn what_is_sound_and_within_the_envelope_is_published() {
        let notes = listing("one", "2026-01-01T00:00:00Z", &json!({}));
        assert_eq!(judged(&notes, &[]).0, PublishedReason::Valid);
        assert_eq!(judge(&notes, None, []).0, PublishedReason::PolicyNotFound);
        let (reason, message) = judge(&notes, Some(&policy("50m")), []);
        assert_eq!(reason, PublishedReason::OutsideEnvelope);
        assert_eq!(
            message,
            "SkuListing spec.preview.size.cpu asks for 100m, allowed is at most 50m"
        );
        let shown = listing("one", "2026-01-01T00:00:00Z", &json!({"/spec/sale": null}));
        assert_eq!(judged(&shown, &[]).0, PublishedReason::NotForSale);
    }

    #[test]
    fn a_sale_that_nobody_could_use_is_not_published() {
        for (field, value, says) in [
            (
                "/spec/sale/versions",
                json!("newest"),
                "spec.sale.versions \"newest\" is no range of versions",
            ),
            (
                "/spec/sale/versions",
                json!(">=2"),
                "spec.version 1.4.0 is not within spec.sale.versions \">=2\"",
            ),
            (
                "/spec/sale/prices/0/currency",
                json!("EUX"),
                "spec.sale.prices[0].currency: \"EUX\" is no ISO 4217 currency",
            ),
            // A dash in front of a number that begins with a zero (semver 2.0.0, item 9).
            (
                "/spec/version",
                json!("1.4.0-01"),
                "spec.version \"1.4.0-01\" is no version",
            ),
        ] {
            let unsound = listing("one", "2026-01-01T00:00:00Z", &json!({ field: value }));
            let (reason, message) = judged(&unsound, &[]);
            assert_eq!(reason, PublishedReason::SaleUnsound);
            assert!(message.starts_with(says), "{message}");
        }
    }

    #[test]
    fn who_sells_a_sku_keeps_it_and_else_the_older_listing_has_it() {
        let old = listing("one", "2026-01-01T00:00:00Z", &json!({}));
        let new = listing("two", "2026-01-02T00:00:00Z", &json!({}));
        assert_eq!(judged(&old, &[&new]).0, PublishedReason::Valid);
        let (reason, message) = judged(&new, &[&old]);
        assert_eq!(reason, PublishedReason::SkuTaken);
        assert!(message.starts_with("one/notes sells SKU"), "{message}");
        // Of one second: the same one, whoever is asked.
        let twin = listing("three", "2026-01-01T00:00:00Z", &json!({}));
        assert_eq!(judged(&old, &[&twin]).0, PublishedReason::Valid);
        assert_eq!(judged(&twin, &[&old]).0, PublishedReason::SkuTaken);
        // One that sells it already keeps it, whatever is older and comes to want it.
        let mut sells = new.clone();
        sells.status = serde_json::from_value(json!({"conditions": [{
            "type": "Published", "status": "True", "reason": "Valid", "message": "", "observedGeneration": 0,
            "lastTransitionTime": "2026-01-02T00:00:00Z",
        }]}))
        .unwrap();
        assert_eq!(judged(&sells, &[&twin]).0, PublishedReason::Valid);
        assert_eq!(judged(&twin, &[&sells]).0, PublishedReason::SkuTaken);
        // One that nobody could buy from keeps nobody from selling.
        let unsound = listing(
            "zero",
            "2025-01-01T00:00:00Z",
            &json!({"/spec/sale/versions": ">=9"}),
        );
        assert_eq!(judged(&twin, &[&unsound]).0, PublishedReason::Valid);
        let others = [
            listing(
                "zero",
                "2025-01-01T00:00:00Z",
                &json!({"/spec/seller": "somebody"}),
            ),
            listing("zero", "2025-01-01T00:00:00Z", &json!({"/spec/sale": null})),
        ];
        assert_eq!(judged(&new, &others.each_ref()).0, PublishedReason::Valid);
    }
}
