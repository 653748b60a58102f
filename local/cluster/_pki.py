"""The cluster's own certificate authorities, keys and kubeconfigs: made new at each start, 0600, gone with `down`."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ._layout import Addresses

# Longer than anyone leaves a laptop's cluster running; shorter than a forgotten key should be good for.
_LIFETIME = datetime.timedelta(days=365)

KEDA_USER = "system:serviceaccount:keda:keda-operator"
PROMETHEUS_USER = "system:serviceaccount:monitoring:prometheus"


@dataclass(frozen=True, kw_only=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour of leeway for clocks that step back.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
    )


def _authority(folder: Path, file: str, common_name: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The key of an authority is needed only here, so it never reaches the disk.
    _write(folder / f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return _Authority(key=key, certificate=certificate)


def _issue(
    authority: _Authority,
    folder: Path,
    file: str,
    common_name: str,
    *,
    groups: tuple[str, ...] = (),
    dns: tuple[str, ...] = (),
    ips: tuple[str, ...] = (),
) -> None:
    """Write `file.crt` and `file.key`: a client certificate, and a serving one too where it has names or addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        ]
    )
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if dns or ips:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _builder(subject, authority.certificate.subject, key)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if dns or ips:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    _write(folder / f"{file}.key", _private(key))
    _write(folder / f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM))


def kubeconfig(*, name: str, server: str, folder: Path, user: str) -> str:
    """A kubeconfig (JSON, which is YAML too) with the keys of `user` inside, context and cluster called `name`."""

    def encoded(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": encoded("ca.crt")}}],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": encoded(f"{user}.crt"),
                    "client-key-data": encoded(f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }
    return json.dumps(document, indent=1) + "\n"


def write(folder: Path, *, cluster: str, addresses: Addresses) -> None:
    """Fill `folder` with everything the control plane needs; `<user>.kubeconfig` for each user of the API server."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    here = addresses.control_plane
    ca = _authority(folder, "ca", f"tollgate {cluster}")
    _issue(
        ca,
        folder,
        "apiserver",
        "kube-apiserver",
        dns=("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
        ips=(here, addresses.kubernetes_service),
    )
    _issue(ca, folder, "kubelet-client", "kube-apiserver-kubelet-client", groups=("system:masters",))
    _issue(ca, folder, "kubelet-serving", f"system:node:{cluster}", groups=("system:nodes",), ips=(addresses.node,))
    # The controller manager and the scheduler make self-signed serving certificates when given none, in a file each.
    _issue(ca, folder, "serving", "tollgate-control-plane", ips=(here,))

    etcd = _authority(folder, "etcd-ca", f"tollgate {cluster} etcd")
    _issue(etcd, folder, "etcd", "etcd", ips=(here,))
    _issue(etcd, folder, "etcd-client", "kube-apiserver")

    front_proxy = _authority(folder, "front-proxy-ca", f"tollgate {cluster} front proxy")
    _issue(front_proxy, folder, "front-proxy-client", "front-proxy-client")

    signer = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "service-account.key", _private(signer))
    _write(
        folder / "service-account.pub",
        signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )

    # The KEDA operator and its adapter each read ca.crt, tls.crt and tls.key from one folder and speak mutual TLS.
    keda_folder = folder / "keda"
    keda_folder.mkdir(exist_ok=True)
    keda = _authority(keda_folder, "ca", f"tollgate {cluster} keda")
    _issue(
        keda,
        keda_folder,
        "tls",
        "keda",
        dns=("keda-operator.keda.svc", "keda-metrics-apiserver.keda.svc"),
        ips=(here,),
    )

    accounts = "system:serviceaccounts"
    users: dict[str, tuple[str, tuple[str, ...]]] = {
        "admin": ("tollgate-admin", ("system:masters",)),
        "runner": ("tollgate-runner", ("system:masters",)),
        "kwok": ("tollgate-kwok", ("system:masters",)),
        "controller-manager": ("system:kube-controller-manager", ()),
        "scheduler": ("system:kube-scheduler", ()),
        "kube-proxy": ("system:kube-proxy", ()),
        # A certificate in the name of a service account: RBAC binds to the name, and no token has to be renewed.
        "keda": (KEDA_USER, (accounts, f"{accounts}:keda")),
        "prometheus": (PROMETHEUS_USER, (accounts, f"{accounts}:monitoring")),
    }
    for user, (common_name, groups) in users.items():
        _issue(ca, folder, user, common_name, groups=groups)
        content = kubeconfig(name=cluster, server=addresses.api_url, folder=folder, user=user)
        _write(folder / f"{user}.kubeconfig", content.encode())
