# Sourced by scripts/clients: the generators, each in a folder of the cache that is named after its pins.
# shellcheck shell=bash disable=SC2034  # its names are used where it is sourced

JAVA_GENERATOR=7.25.0 # of openapi-generator
MAVEN_DEPENDENCY=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

pins=$root/scripts/generators
locks=$root/requirements # of what is installed with pip
cache=${BULKHEAD_CLIENT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead/clients}
digest() { cat "$@" | sha256sum | cut -c1-12; }
python_tools=$cache/python-$(digest "$locks/generator-python.txt")
node_tools=$cache/node-$(digest "$pins/node/package-lock.json")
go_tools=$cache/go-$(digest "$pins/go/go.mod" "$pins/go/go.sum")
java_tools=$cache/java-$JAVA_GENERATOR-$(digest "$pins/java.yaml" "$pins/java.sha256") # the libraries depend on what is generated
node_wheel=$cache/node-wheel-$(digest "$locks/node.txt") # where the system has no Node 18.18 or later
go_wheel=$cache/go-wheel-$(digest "$locks/go.txt")       # where the system has no Go 1.25 or later: Debian 12 has 1.19

# quietly SENTENCE COMMAND...: a failure is the sentence and the end of what it said.
quietly() {
    local sentence=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        say "$sentence; the end of what it said:"
        tail -n 20 "$log" | sed 's/^/    /' >&2
        rm -f "$log"
        exit 1
    fi
    rm -f "$log"
}

# build_once FOLDER FUNCTION: FUNCTION fills the folder that it is given. Who comes second waits for the first, and only
# a finished folder counts: it has the file `complete`. It is built in its place, since a virtual environment has its
# own path in its programs.
build_once() {
    local folder=$1 build=$2 lock
    [ -e "$folder/complete" ] && return
    mkdir -p "$cache"
    exec {lock}>"$folder.lock"
    flock "$lock"
    if [ ! -e "$folder/complete" ]; then
        rm -rf "$folder"
        mkdir "$folder"
        "$build" "$folder"
        touch "$folder/complete"
    fi
    exec {lock}>&-
}

is_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; } # is_at_least WANTED FOUND

system_node() { command -v npm >/dev/null && is_at_least v18.18 "$(node --version 2>/dev/null || echo v0)"; }
system_go() { is_at_least go1.25 "$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null || echo go0)"; }
system_java() { command -v javac >/dev/null && command -v mvn >/dev/null; }

# Node and Go come as wheels: any user can have them, on any distribution. They go first in PATH.
use_node() {
    system_node && return
    build_once "$node_wheel" install_node
    PATH=$node_wheel/bin:$PATH
}
use_go() {
    system_go && return
    build_once "$go_wheel" install_go
    PATH=$go_wheel/bin:$PATH
}
use_java() {
    system_java && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        give_up "javac and mvn are needed: install the packages default-jdk-headless and maven"
    fi
    say "apt-get install default-jdk-headless maven"
    export DEBIAN_FRONTEND=noninteractive
    quietly "apt-get update failed" apt-get -q -o DPkg::Lock::Timeout=300 update
    quietly "apt-get install failed" apt-get -q -o DPkg::Lock::Timeout=300 \
        install --yes --no-install-recommends default-jdk-headless maven
}

wheels_into() { # wheels_into FOLDER SENTENCE LOCK
    local folder=$1 sentence=$2 lock=$3
    say "$sentence"
    quietly "python -m venv failed" "$root/.venv/bin/python" -m venv "$folder"
    quietly "pip install failed" "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --root-user-action=ignore --require-hashes --only-binary :all: --requirement "$locks/$lock.txt"
}

install_node() { wheels_into "$1" "installing Node: there is none from 18.18 on" node; }
install_go() { wheels_into "$1" "installing Go: there is none from 1.25 on" go; }
install_python_tools() { wheels_into "$1" "installing openapi-python-client" generator-python; }

install_node_tools() {
    say "installing openapi-typescript, the TypeScript compiler and the linter"
    cp "$pins"/node/package*.json "$1"
    # No package needs its install script, and one of them would tell a stranger about this machine.
    quietly "npm ci failed" npm --prefix "$1" ci --ignore-scripts --no-audit --no-fund --no-update-notifier
}

install_go_tools() {
    say "building oapi-codegen, which takes a minute"
    quietly "go build failed" go -C "$pins/go" build -mod=readonly -o "$1/oapi-codegen" \
        github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen
}

fetch_java_tools() { # fetch_java_tools FOLDER
    quietly "fetching openapi-generator failed" mvn --batch-mode "$MAVEN_DEPENDENCY:copy" \
        "-Dartifact=org.openapitools:openapi-generator-cli:$JAVA_GENERATOR" "-DoutputDirectory=$1" \
        -Dmdep.stripVersion=true
    quietly "openapi-generator failed" java -jar "$1/openapi-generator-cli.jar" generate \
        --config "$pins/java.yaml" --input-spec "$root/openapi.yaml" --output "$1/client"
    quietly "fetching the libraries failed" mvn --batch-mode --file "$1/client/pom.xml" \
        "$MAVEN_DEPENDENCY:copy-dependencies" -DincludeScope=compile "-DoutputDirectory=$1/libraries"
}

jar_digests() { (cd "$1" && sha256sum openapi-generator-cli.jar libraries/*.jar); } # jar_digests FOLDER

# Maven itself compares a file only with a digest that comes from the same place.
install_java_tools() {
    say "fetching openapi-generator, and the libraries that its clients need"
    fetch_java_tools "$1"
    jar_digests "$1" >"$1/java.sha256"
    quietly "Maven's files are not those of scripts/generators/java.sha256" diff "$pins/java.sha256" "$1/java.sha256"
}

# What pip does not install: `make lock`. Of Go, go.mod has the versions, and `go mod tidy` writes their digests.
write_locks() {
    local folder
    use_node
    # Without the addresses of a registry in it.
    quietly "npm update failed" npm --prefix "$pins/node" update --package-lock-only --ignore-scripts --no-audit --no-fund \
        --no-update-notifier --omit-lockfile-registry-resolved
    use_java
    folder=$(mktemp -d)
    fetch_java_tools "$folder"
    jar_digests "$folder" >"$pins/java.sha256"
    rm -rf "$folder"
}
