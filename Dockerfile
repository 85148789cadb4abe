# Three images from one file. `gateway` and `egress` never have a privilege. `launcher` isolates.
#
#   docker build --target gateway -t bulkhead-gateway .
#   docker build --target egress -t bulkhead-egress .
#   docker build --target launcher -t bulkhead-launcher .
#
# BASE: any Debian 13 or later. Behind a proxy that inspects TLS: --secret id=ca,src=/path/to/ca-bundle.pem
ARG BASE=debian:trixie-20250908-slim

# --- libraries, each with its hash; nothing of pip stays in the image
FROM ${BASE} AS build
RUN apt-get update -q && apt-get install -qy --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
COPY requirements/runtime.txt /requirements.txt
RUN --mount=type=secret,id=ca,target=/ca.pem \
    python3 -m venv /opt/bulkhead && if [ -s /ca.pem ]; then export PIP_CERT=/ca.pem; fi && \
    /opt/bulkhead/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes \
        -r /requirements.txt && \
    /opt/bulkhead/bin/pip uninstall -qy pip
COPY app /opt/bulkhead/src/app
COPY deploy/docker/bulkhead deploy/docker/gateway-start deploy/docker/launcher-start deploy/docker/http-answers \
    /opt/bulkhead/bin/
RUN python3 -m compileall -q /opt/bulkhead/src

# --- for all images. Certificates: of BoxLite servers for the gateway, of hosts for the egress process and for programs in
# sandboxes.
FROM ${BASE} AS all
RUN apt-get update -q && apt-get install -qy --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/bulkhead /opt/bulkhead
ENV PATH=/opt/bulkhead/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8

# --- the launcher. Sandboxes of the runtime `process` see this image's /usr. PACKAGES adds programs for them.
FROM all AS launcher
# It has mke2fs, for the disks of sandboxes.
RUN apt-get update -q && apt-get install -qy --no-install-recommends e2fsprogs && rm -rf /var/lib/apt/lists/*
ARG PACKAGES=""
RUN if [ -n "$PACKAGES" ]; then \
        apt-get update -q && apt-get install -qy --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
ENTRYPOINT ["launcher-start"]

# --- the egress process, for sandboxes with a network
FROM all AS egress
# The folder of its socket is a volume, which gets this owner and mode: the gateway's group may enter.
RUN groupadd --gid 10001 bulkhead && \
    useradd --uid 10002 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bulkhead-egress && \
    install -d -o 10002 -g 10001 -m 0710 /run/egress
USER 10002:10001
HEALTHCHECK --interval=10s --timeout=30s --start-period=600s CMD ["bulkhead", "egress", "--check", "--socket", "/run/egress/egress.sock"]
ENTRYPOINT ["bulkhead", "egress"]

# --- the gateway. It is last, so a build without --target makes it.
FROM all AS gateway
RUN groupadd --gid 10001 bulkhead && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bulkhead && \
    install -d -o 10001 -g 10001 -m 0700 /var/lib/bulkhead && \
    install -d -o 10001 -g 10001 -m 0750 /var/lib/boxlite-key
USER 10001:10001
ENV BULKHEAD_DATA=/var/lib/bulkhead BULKHEAD_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=30s --start-period=600s CMD ["http-answers", "8000", "/healthz"]
ENTRYPOINT ["gateway-start"]
