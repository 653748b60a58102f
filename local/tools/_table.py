"""The table of tools: what each is for, where it comes from, and what on PATH is as good.

Versions are those of the Go modules beside this file; `weight` is CPU seconds of a cold build in the order of the
table (packages already compiled for an earlier tool are not compiled again), used for order and progress alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Version = tuple[int, ...]

# Compiled for an earlier tool with the very same flags, a package is taken from Go's build cache: so these are for all.
# -pgo=off: a profile in a main package would recompile all dependencies for that program alone.
COMMON_FLAGS: Final = ("-trimpath", "-pgo=off")

_KUBERNETES: Final = "1.36.3"
_PULUMI: Final = "3.250.0"


@dataclass(frozen=True, kw_only=True)
class OnPath:
    """What a program on PATH must be to be used instead of a build.

    `ask`: arguments that make it print its version; empty: not asked. `at_least` inclusive, `below` exclusive.
    `contains`: bytes that must occur in the executable, for a feature that some packagers leave out.
    `beside`: another tool whose copy on PATH must lie in the same folder (the two are released as a pair).
    `sbin`: also look where system programs lie, which is not on every user's PATH.
    """

    program: str
    ask: tuple[str, ...] = ()
    at_least: Version = ()
    below: Version = ()
    contains: bytes = b""
    beside: str = ""
    sbin: bool = False

    @property
    def wanted(self) -> str:
        """The condition in words, for error messages and the list."""
        if self.beside:
            return f"{self.program} beside {self.beside}"
        low = ".".join(map(str, self.at_least))
        high = ".".join(map(str, self.below))
        text = f"{self.program} {f'>= {low}' if low else ''}{f', < {high}' if high else ''}".strip()
        return f"{text} with {self.contains.decode()}" if self.contains else text


@dataclass(frozen=True, kw_only=True)
class GoProgram:
    """A main package of one of the wrapper modules beside this file.

    `stamps`: `-X` assignments, for programs that would not know their version otherwise.
    """

    module: str
    package: str
    stamps: tuple[str, ...] = ()
    tags: str = ""
    cgo: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Build flags; the symbol table and DWARF are left out, which halves the size."""
        link = " ".join(["-s", "-w", *(f"-X {stamp}" for stamp in self.stamps)])
        return (*COMMON_FLAGS, *((f"-tags={self.tags}",) if self.tags else ()), f"-ldflags={link}")


@dataclass(frozen=True, kw_only=True)
class ModuleFile:
    """An executable script that a Go module ships: `file` within `dependency`, as required by wrapper `module`."""

    module: str
    dependency: str
    file: str


@dataclass(frozen=True, kw_only=True)
class DebianPackages:
    """A program out of Debian packages unpacked into the cache (no root needed), where apt is present."""

    program: str
    package: str


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """Files that a Go module ships beside its programs, kept so that the module cache is not needed afterwards.

    Flat folders whose YAML files, in the order of their names, can be applied as they are. Either `copy` (folders within
    `dependency`; their YAML files but kustomizations) or `render` (output file, kustomization folder, kinds kept: none
    for all).
    """

    name: str
    version: str
    module: str
    dependency: str
    copy: tuple[str, ...] = ()
    render: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One program; `weight` in CPU seconds, `version` what we build."""

    name: str
    purpose: str
    version: str
    source: GoProgram | ModuleFile | DebianPackages
    weight: float
    on_path: OnPath | None = None
    optional: bool = False
    data: tuple[str, ...] = ()


Origin = Literal["PATH", "built", "missing"]


def _kube(program: str, purpose: str, weight: float, on_path: OnPath | None = None) -> Tool:
    # The server components talk to each other, so on PATH only the very same minor version fits.
    minor = OnPath(program=program, ask=("--version",), at_least=(1, 36), below=(1, 37))
    return Tool(
        name=program,
        purpose=purpose,
        version=_KUBERNETES,
        source=GoProgram(
            module="kubernetes",
            package=f"k8s.io/kubernetes/cmd/{program}",
            stamps=(
                f"k8s.io/component-base/version.gitVersion=v{_KUBERNETES}",
                "k8s.io/component-base/version.gitMajor=1",
                "k8s.io/component-base/version.gitMinor=36",
                f"k8s.io/client-go/pkg/version.gitVersion=v{_KUBERNETES}",
            ),
        ),
        weight=weight,
        on_path=on_path or minor,
    )


def _keda(name: str, package: str, weight: float, data: tuple[str, ...]) -> Tool:
    return Tool(
        name=name,
        purpose="scales on Prometheus metrics" if name == "keda-operator" else "serves external metrics to the HPA",
        version="2.21.0",
        source=GoProgram(
            module="keda",
            package=f"github.com/kedacore/keda/v2/cmd/{package}",
            stamps=("github.com/kedacore/keda/v2/version.Version=2.21.0",),
        ),
        weight=weight,
        data=data,
    )


# In the order in which work can begin soonest: what previews and renders, the control plane, then what it can do without
# at first.
TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        name="pulumi-language-python",
        purpose="runs Python programs for Pulumi",
        version="3.79.0",
        source=GoProgram(
            module="pulumi-language-python",
            package="github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
        ),
        weight=45,
        on_path=OnPath(program="pulumi-language-python", beside="pulumi"),
    ),
    Tool(
        name="pulumi-language-python-exec",
        purpose="the Python side of the language host",
        version="3.79.0",
        source=ModuleFile(
            module="pulumi-language-python",
            dependency="github.com/pulumi/pulumi/sdk/v3",
            file="python/cmd/pulumi-language-python-exec",
        ),
        weight=0,
        on_path=OnPath(program="pulumi-language-python-exec", beside="pulumi"),
    ),
    Tool(
        name="helm",
        purpose="installs charts",
        version="3.22.0",
        source=GoProgram(
            module="helm",
            package="helm.sh/helm/v3/cmd/helm",
            stamps=("helm.sh/helm/v3/internal/version.version=v3.22.0",),
        ),
        weight=120,
        on_path=OnPath(program="helm", ask=("version", "--short"), at_least=(3, 14), below=(5,)),
    ),
    Tool(
        name="pulumi",
        purpose="the engine: previews, updates, state",
        version=_PULUMI,
        source=GoProgram(
            module="pulumi",
            package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
            stamps=(
                f"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{_PULUMI}",
                f"github.com/pulumi/pulumi/pkg/v3/version.Version=v{_PULUMI}",
            ),
        ),
        weight=390,
        on_path=OnPath(program="pulumi", ask=("version",), at_least=(3, 200), below=(4,)),
    ),
    Tool(
        name="etcd",
        purpose="stores the cluster's objects",
        version="3.6.16",
        source=GoProgram(module="etcd", package="go.etcd.io/etcd/server/v3"),
        weight=49,
        on_path=OnPath(program="etcd", ask=("--version",), at_least=(3, 6), below=(4,)),
    ),
    _kube("kube-apiserver", "the Kubernetes API", 408),
    _kube("kube-controller-manager", "the Kubernetes controllers", 106),
    _kube("kube-scheduler", "assigns pods to nodes", 7),
    _kube("kube-proxy", "makes Services reachable, by nftables", 16),
    _kube(
        "kubectl",
        "talks to the API by hand",
        40,
        # The client's own version only: without `--client` it would ask a server.
        OnPath(program="kubectl", ask=("version", "--client"), at_least=(1, 28), below=(2,)),
    ),
    Tool(
        name="nft",
        purpose="the rules behind Services",
        version="",
        source=DebianPackages(program="usr/sbin/nft", package="nftables"),
        weight=0,
        on_path=OnPath(program="nft", ask=("--version",), at_least=(1, 0, 1), sbin=True),
    ),
    Tool(
        name="kwok",
        purpose="pretends nodes and their pods",
        version="0.8.0",
        source=GoProgram(module="kwok", package="sigs.k8s.io/kwok/cmd/kwok"),
        weight=119,
        on_path=OnPath(program="kwok", ask=("--version",), at_least=(0, 7), below=(0, 9)),
        data=("kwok-stages",),
    ),
    Tool(
        name="prometheus",
        purpose="collects metrics",
        version="3.14.0",
        source=GoProgram(
            module="prometheus",
            package="github.com/prometheus/prometheus/cmd/prometheus",
            # Only the service discovery that is used: the others are half of the build.
            tags="remove_all_sd,enable_kubernetes_sd,netgo",
            stamps=("github.com/prometheus/common/version.Version=3.14.0",),
        ),
        weight=224,
        # Distributions leave the Kubernetes service discovery out, and their --version does not say so.
        on_path=OnPath(
            program="prometheus",
            ask=("--version",),
            at_least=(3,),
            below=(4,),
            contains=b"prometheus/discovery/kubernetes",
        ),
    ),
    _keda("keda-adapter", "adapter", 735, ()),
    _keda("keda-operator", "operator", 15, ("keda-crds", "keda-rbac")),
    Tool(
        name="ollama",
        purpose="a real engine, for a tiny model on the CPU",
        # Later releases lack headers that their module does not ship, so they do not build from it.
        version="0.6.5",
        source=GoProgram(
            module="ollama",
            package="github.com/ollama/ollama",
            stamps=("github.com/ollama/ollama/version.Version=0.6.5",),
            cgo=True,
        ),
        weight=150,
        optional=True,
        on_path=OnPath(program="ollama", ask=("--version",), at_least=(0, 6)),
    ),
    Tool(
        name="lws",
        purpose="keeps the pods of a replica that spans nodes together",
        version="0.7.0",
        source=GoProgram(module="lws", package="sigs.k8s.io/lws/cmd"),
        weight=115,
        optional=True,
        data=("lws-crds", "lws-webhooks"),
    ),
    Tool(
        name="coscheduling",
        purpose="a scheduler that starts all pods of a group or none",
        version="0.33.5",
        source=GoProgram(
            module="scheduler-plugins",
            package="sigs.k8s.io/scheduler-plugins/cmd/scheduler",
            # Without it the program takes itself for Kubernetes v0.0.0 and refuses its own flags.
            stamps=("k8s.io/component-base/version.gitVersion=v1.33.13",),
        ),
        weight=220,
        optional=True,
        data=("coscheduling-crds",),
    ),
    Tool(
        name="haproxy",
        purpose="the gateway's proxy, to try its configuration",
        version="",
        source=DebianPackages(program="usr/sbin/haproxy", package="haproxy"),
        weight=0,
        optional=True,
        on_path=OnPath(program="haproxy", ask=("-v",), at_least=(2, 4), sbin=True),
    ),
    Tool(
        name="promtool",
        purpose="tests alert rules",
        version="",
        source=DebianPackages(program="usr/bin/promtool", package="prometheus"),
        weight=0,
        optional=True,
        on_path=OnPath(program="promtool", ask=("--version",), at_least=(2, 42), below=(4,)),
    ),
)

# Without the namespace: whoever installs KEDA makes it first.
_RBAC: Final = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")

DATA: Final[tuple[DataFolder, ...]] = (
    DataFolder(
        name="kwok-stages",
        version="0.8.0",
        module="kwok",
        dependency="sigs.k8s.io/kwok",
        # What the module's own kustomize/stage/fast is made of.
        copy=("kustomize/stage/node/fast", "kustomize/stage/node/heartbeat-with-lease", "kustomize/stage/pod/fast"),
    ),
    DataFolder(
        name="keda-crds",
        version="2.21.0",
        module="keda",
        dependency="github.com/kedacore/keda/v2",
        render=(("crds.yaml", "config/crd", ()),),
    ),
    DataFolder(
        name="keda-rbac",
        version="2.21.0",
        module="keda",
        dependency="github.com/kedacore/keda/v2",
        render=(("rbac.yaml", "config/minimal", _RBAC),),
    ),
    DataFolder(
        name="lws-crds", version="0.7.0", module="lws", dependency="sigs.k8s.io/lws", copy=("config/crd/bases",)
    ),
    DataFolder(
        name="lws-webhooks",
        version="0.7.0",
        module="lws",
        dependency="sigs.k8s.io/lws",
        render=(("webhooks.yaml", "config/webhook", ()),),
    ),
    DataFolder(
        name="coscheduling-crds",
        version="0.33.5",
        module="scheduler-plugins",
        dependency="sigs.k8s.io/scheduler-plugins",
        copy=("config/crd/bases",),
    ),
)
