"""From the field `secrets` of a request to the core's secrets. No refusal shows a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from app.api.schemas.requests import SecretRequest
from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.commands import check_environment
from app.core.errors import CapabilityMissing, InvalidRequest
from app.core.network_rules import NetworkRule
from app.core.operator_secrets import OperatorSecrets
from app.core.policy import Network
from app.core.secrets import Secret, SecretValue, check_read, check_rules, is_variable, new_placeholder, secret_hosts


def secrets_of(
    asked: Mapping[str, SecretRequest],
    env: Mapping[str, str],
    network: Network,
    runtime: RuntimeInfo,
    operators: OperatorSecrets,
) -> tuple[Secret, ...]:
    """Sorted by variable. Raises InvalidRequest and CapabilityMissing."""
    if not asked:
        return ()
    if network.mode != "proxy":
        raise InvalidRequest.at("/secrets", "need a network with the mode `proxy`")
    if Capability.SECRETS not in runtime.capabilities:
        raise CapabilityMissing([Capability.SECRETS], runtime.name)
    secrets = tuple(_secret(name, asked[name], env, network, runtime, operators) for name in sorted(asked))
    placeholders = {secret.variable: secret.placeholder for secret in secrets}
    if wrong := check_environment({**env, **placeholders}, runtime.command_limits):
        raise InvalidRequest(wrong)
    return secrets


def check_changed_rules(secrets: Iterable[Secret], rules: Sequence[NetworkRule]) -> None:
    """Hosts of secrets may lose their rules, but requests to them must not pass unread. Raises InvalidRequest."""
    for host in (host for secret in secrets for host in secret.hosts):
        try:
            check_read(host, rules)
        except ValueError as error:
            raise InvalidRequest.at("/policy/network/allow", str(error)) from None


def _secret(
    variable: str,
    asked: SecretRequest,
    env: Mapping[str, str],
    network: Network,
    runtime: RuntimeInfo,
    operators: OperatorSecrets,
) -> Secret:
    if not is_variable(variable):  # it is not shown: somebody may have put the value there
        sentence = "a name must have 1 to 128 letters, digits and _, and must not begin with a digit"
        raise InvalidRequest.at("/secrets", sentence)
    pointer = f"/secrets/{variable}"
    if variable in env:
        raise InvalidRequest.at(pointer, "is in `env` too; a variable is either")
    if variable in runtime.command_limits.reserved:
        raise InvalidRequest.at(pointer, "is reserved: the runtime itself uses this variable")
    if (asked.value is None) == (asked.source is None):
        raise InvalidRequest.at(pointer, "needs either value or from")
    secret = _own(variable, asked, pointer) if asked.source is None else _operators(variable, asked, pointer, operators)
    try:
        check_rules(secret, network.rules)
    except ValueError as error:
        raise InvalidRequest.at(f"{pointer}/hosts", str(error)) from None
    return secret


def _own(variable: str, asked: SecretRequest, pointer: str) -> Secret:
    try:
        value = SecretValue("" if asked.value is None else asked.value.get_secret_value())
    except ValueError as error:
        raise InvalidRequest.at(f"{pointer}/value", str(error)) from None
    if asked.hosts is None:
        raise InvalidRequest.at(f"{pointer}/hosts", "must name the hosts that the secret may be sent to")
    return Secret(variable, _hosts(asked.hosts, pointer), value, placeholder=new_placeholder(value))


def _operators(variable: str, asked: SecretRequest, pointer: str, operators: OperatorSecrets) -> Secret:
    name = asked.source or ""
    found = operators.find(name)
    if found is None:
        known = ", ".join(operators.names) or "none"
        raise InvalidRequest.at(f"{pointer}/from", f"the operator has no secret of this name; known: {known}")
    hosts = found.hosts if asked.hosts is None else _hosts(asked.hosts, pointer)
    for host in hosts:
        if host not in found.hosts:
            sentence = f"the operator's secret {name!r} may be sent to {', '.join(found.hosts)}, and not to {host}"
            raise InvalidRequest.at(f"{pointer}/hosts", sentence)
    return Secret(variable, hosts, source=name, placeholder=new_placeholder(found.value))


def _hosts(asked: list[str], pointer: str) -> tuple[str, ...]:
    try:
        return secret_hosts(asked)
    except ValueError as error:
        raise InvalidRequest.at(f"{pointer}/hosts", str(error)) from None
