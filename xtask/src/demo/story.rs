//! What the demo shows, in its order. Applies objects as a user would, and checks what it claims.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client};
use serde::Serialize;
use vitrine_crds::{Phase, PreviewSandbox, preview_sandbox::EndResult};
use vitrine_devcluster::{host, tools};
use vitrine_kit::{
    Error, Result, browser, http,
    images::{self, Build},
    install::{self, NAMESPACE, Target},
    market, objects, program,
};
use vitrine_parts::Port;

use super::{Args, cluster::Ground, sale, stages::Stages};

/// The namespace of the demo's shop.
const SHOP: &str = "demo-shop";
/// The preview that is watched to its end.
const PREVIEW: &str = "try-pocketbase";
/// The preview that stays to be played with.
const STAYS: &str = "play-with-me";
/// Far longer than a preview takes on two busy cores.
const READY: Duration = Duration::from_secs(120);
/// Far longer than an end takes.
const END: Duration = Duration::from_secs(60);

/// Tells the story.
///
/// # Errors
/// Those of the first stage that fails.
pub async fn tell(args: &Args) -> Result<()> {
    let mut stages = Stages::begin(args.quiet);
    let told = stages_of(args, &mut stages).await;
    println!("{}", stages.table());
    told
}

async fn stages_of(args: &Args, stages: &mut Stages) -> Result<()> {
    let folder = images::workspace().join("target/vitrine/demo");
    std::fs::create_dir_all(&folder).map_err(|source| Error::File {
        path: folder.clone(),
        source,
    })?;

    stages
        .run("prerequisites of this machine", async |progress| {
            Ok(host::ensure(host::BROWSER, progress)?)
        })
        .await?;
    let tools = stages
        .run("build Kubernetes, Helm and the product", async |progress| {
            let groups = tools::groups()?;
            let names: Vec<&str> = groups.iter().map(|group| group.group.as_str()).collect();
            Ok(tools::ensure(&names, progress)?)
        })
        .await?;
    let (operator, product, images_of_shop) = stages
        .run("build Vitrine and the images", async |progress| {
            let repository = args.image_repo.as_deref().unwrap_or(images::LOCAL);
            Ok((
                images::operator_at(repository, Build::Quick)?,
                images::pocketbase_at(repository, progress)?,
                market::Images::build(repository, progress)?,
            ))
        })
        .await?;
    let ground = stages
        .run("bring the cluster up", async |progress| {
            let ground = Ground::prepare(args, progress)?;
            ground.load(&operator)?;
            ground.load(&product)?;
            Ok(ground)
        })
        .await?;
    let target = ground.target();
    let port = Port::for_good().port();
    let url = format!("http://{{label}}.previews.localhost:{port}");
    let client = target.client().await?;
    let relay = stages
        .run("install Vitrine with Helm", async |progress| {
            install::install(&target, &ground.options(args, &operator, &url), progress)?;
            let gateway = market::Lead {
                port,
                namespace: NAMESPACE,
                service: "vitrine-gateway",
            };
            ground.relay(&gateway, &client, progress).await
        })
        .await?;

    let kubectl = Kubectl {
        program: tools.binary("kubernetes", "kubectl")?,
        target: target.clone(),
    };
    let listing = sale::sold(objects::pocketbase(&product))?;
    let preview = stages.run("kubectl apply, wait for Ready", async |_| {
        objects::shop(&client, SHOP).await?;
        kubectl.apply(&folder, "listing.yaml", &listing)?;
        kubectl.apply(
            &folder,
            "preview.yaml",
            &objects::preview(PREVIEW, "pocketbase", "visitor-1", Some(&args.ttl)),
        )?;
        wait_ready(&client, PREVIEW).await
    });
    let preview = preview.await?;
    println!("\n{}", kubectl.run(&["get", "previews", "-n", SHOP])?);
    let link = preview
        .status
        .as_ref()
        .and_then(|s| s.url.clone())
        .unwrap_or_default();
    println!("link: {link}");

    stages
        .run("open the link in a browser", async |_| {
            let seen = look(&link, &folder);
            in_time(&client, seen, &args.ttl).await
        })
        .await?;
    println!("screenshot: {}", folder.join("screenshot.png").display());
    println!("{}", evidence(&preview));

    let ended = stages
        .run("watch it to its end", async |_| {
            watch_end(&client, &preview).await
        })
        .await?;
    println!("{}", kubectl.run(&["get", "previews", "-n", SHOP])?);
    stages
        .run("prove that nothing is left", async |_| {
            nothing_left(&client, &ended, &link, port).await
        })
        .await?;
    println!("{}", receipt(&ended)?);

    let shop = sale::tell(stages, &ground, &client, &images_of_shop, &listing, &folder).await?;
    if args.once {
        return Ok(());
    }
    stay(&client, &kubectl, &folder, &target, &shop).await?;
    drop((relay, shop));
    drop(ground);
    Ok(())
}

/// kubectl, as a user would call it.
struct Kubectl {
    program: PathBuf,
    target: Target,
}

impl Kubectl {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut all = self.target.kubectl_flags();
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        program::run(&self.program, &all)
    }

    fn apply<T: Serialize>(&self, folder: &Path, name: &str, object: &T) -> Result<()> {
        let path = folder.join(name);
        let text = serde_yaml::to_string(object).map_err(|e| Error::Other(e.to_string()))?;
        std::fs::write(&path, text).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        self.run(&["apply", "-n", SHOP, "-f", &path.display().to_string()])
            .map(|_| ())
    }
}

async fn wait_ready(client: &Client, name: &str) -> Result<PreviewSandbox> {
    let api: Api<PreviewSandbox> = Api::namespaced(client.clone(), SHOP);
    let over = |p: &PreviewSandbox| {
        matches!(
            p.phase(),
            Phase::Ready | Phase::Failed | Phase::Refused | Phase::Ended
        )
    };
    let preview = objects::until(&api, name, "ready", READY, over).await?;
    if preview.phase() == Phase::Ready {
        return Ok(preview);
    }
    let status = preview.status.unwrap_or_default();
    Err(Error::Other(format!(
        "the preview did not become ready: {:?} {}",
        status.reason,
        status.message.unwrap_or_default()
    )))
}

fn look(link: &str, folder: &Path) -> Result<()> {
    let profile = folder.join(format!("browser-{}", std::process::id()));
    let page = browser::open(link, &folder.join("screenshot.png"), &profile);
    // The profile holds the link's cookie.
    let removed = std::fs::remove_dir_all(&profile);
    let page = page?;
    removed.map_err(|source| Error::File {
        path: profile,
        source,
    })?;
    // What PocketBase's own script puts there once it has run and asked its API.
    if page.contains("Superuser login") && page.contains("<form") {
        return Ok(());
    }
    let text: String = page.chars().take(2000).collect();
    Err(Error::Other(format!(
        "the product's admin page did not load; the browser had: {text}"
    )))
}

/// What the browser saw; if that was nothing because the preview's time was over, says so.
async fn in_time(client: &Client, seen: Result<()>, ttl: &str) -> Result<()> {
    let Err(error) = seen else {
        return Ok(());
    };
    let api: Api<PreviewSandbox> = Api::namespaced(client.clone(), SHOP);
    let now = api
        .get_opt(PREVIEW)
        .await
        .map_err(Error::kube("get the preview"))?;
    let status = now.and_then(|preview| preview.status).unwrap_or_default();
    if status.phase == Phase::Ready {
        return Err(error);
    }
    Err(Error::Other(format!(
        "the preview was {:?} ({:?}) before the browser had opened it: give it more than {ttl} with --ttl; {error}",
        status.phase, status.reason
    )))
}

fn evidence(preview: &PreviewSandbox) -> String {
    let mut text = String::from(
        "\nwhat the probe tried from inside, before the product ran; what the same address answered outside:\n",
    );
    text += &format!(
        "  {:<18}{:<24}{:<22}{:<10}\n",
        "target", "address", "from inside", "outside"
    );
    let isolation = preview.status.as_ref().and_then(|s| s.isolation.as_ref());
    for target in isolation.iter().flat_map(|i| &i.targets) {
        text += &format!(
            "  {:<18}{:<24}{:<22}{:<10}\n",
            target.name, target.address, target.inside, target.outside
        );
    }
    text
}

async fn watch_end(client: &Client, preview: &PreviewSandbox) -> Result<PreviewSandbox> {
    let api: Api<PreviewSandbox> = Api::namespaced(client.clone(), SHOP);
    let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ended);
    let expires = preview
        .status
        .as_ref()
        .and_then(|s| s.expires_at.as_ref())
        .map(|t| t.0);
    let left = expires.map_or(0, |at| {
        (at.as_second() - k8s_openapi::jiff::Timestamp::now().as_second()).max(0)
    });
    let patience = END + Duration::from_secs(u64::try_from(left).unwrap_or(0));
    objects::until(&api, PREVIEW, "ended", patience, over).await
}

async fn nothing_left(client: &Client, ended: &PreviewSandbox, link: &str, port: u16) -> Result<()> {
    let status = ended.status.clone().unwrap_or_default();
    let cell = status.cell.unwrap_or_default();
    let gone = |found: bool, what: &str| {
        if found {
            Err(Error::Other(format!("{what} is still there")))
        } else {
            Ok(())
        }
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces.get_opt(&cell).await;
    let namespace = namespace.map_err(Error::kube("get the cell"))?;
    let had = namespace.as_ref().and_then(objects::tenant);
    gone(had.is_some(), "the preview's hold on its cell")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &cell);
    gone(
        pods.get_opt("preview")
            .await
            .map_err(Error::kube("get the pod"))?
            .is_some(),
        "the pod",
    )?;
    let (host, path) = link
        .trim_start_matches("http://")
        .split_once('/')
        .unwrap_or((link, ""));
    let answer = http::get(([127, 0, 0, 1], port).into(), host, &format!("/{path}")).await?;
    if answer.status != 410 {
        return Err(Error::Other(format!("the link still answers: {answer:?}")));
    }
    println!(
        "\nnamespace {cell}: {}\npod {cell}/preview: gone\nlink: {} Gone",
        if namespace.is_some() {
            "free for the next preview"
        } else {
            "gone"
        },
        answer.status
    );
    Ok(())
}

fn receipt(ended: &PreviewSandbox) -> Result<String> {
    let receipt = ended.status.as_ref().and_then(|s| s.receipt.as_ref());
    let receipt = receipt.ok_or_else(|| Error::Other("there is no receipt".to_owned()))?;
    if receipt.result != EndResult::Verified {
        return Err(Error::Other(format!(
            "the end was not seen: {:?}",
            receipt.result
        )));
    }
    let text = serde_yaml::to_string(receipt).map_err(|e| Error::Other(e.to_string()))?;
    Ok(format!(
        "\nreceipt:\n{}",
        text.lines().map(|l| format!("  {l}\n")).collect::<String>()
    ))
}

async fn stay(
    client: &Client,
    kubectl: &Kubectl,
    folder: &Path,
    target: &Target,
    shop: &sale::Shop,
) -> Result<()> {
    kubectl.apply(
        folder,
        "stays.yaml",
        &objects::preview(STAYS, "pocketbase", "visitor-2", Some("30m")),
    )?;
    let preview = wait_ready(client, STAYS).await?;
    let link = preview.status.and_then(|s| s.url).unwrap_or_default();
    println!("\nA preview for you, for half an hour:\n  {link}\n");
    println!(
        "The cluster:\n  export KUBECONFIG={}\n",
        target.kubeconfig.display()
    );
    println!("{}", shop.hints());
    println!("Try this next:");
    for (line, why) in [
        (
            format!("kubectl get previews -n {SHOP} -o wide"),
            "how, why, where, until when",
        ),
        (
            format!("kubectl describe preview {STAYS} -n {SHOP}"),
            "conditions and events",
        ),
        (
            "kubectl get skulistings -A -o wide".to_owned(),
            "what is sold, and why something is not",
        ),
        (
            "kubectl delete networkpolicy vitrine -A -l vitrine.dev/cell=true".to_owned(),
            "try to break the seal: it is refused",
        ),
        (
            format!("kubectl logs -n {NAMESPACE} deploy/vitrine-operator"),
            "what the operator did",
        ),
    ] {
        println!("  {line:<72} # {why}");
    }
    println!("\nCtrl-C ends everything and leaves nothing behind.");
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        eprintln!(
            "still up after {} min; Ctrl-C ends it",
            begun.elapsed().as_secs() / 60
        );
    }
}
