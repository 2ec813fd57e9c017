#!/usr/bin/env bash
# Builds the container runtime's half of NRI for the tests, at the path that is given. The library that runtimes use is a package
# of Debian 13; it is unpacked beside the program, with the Go that it needs, and nothing is installed.
set -euo pipefail

program=$(realpath -m "$1")
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(dirname "$program")
packages=(
    golang-1.24-go golang-1.24-src
    golang-github-containerd-nri-dev golang-github-containerd-ttrpc-dev golang-github-gogo-protobuf-dev
    golang-github-golang-protobuf-1-5-dev golang-github-kubernetes-cri-api-dev golang-github-opencontainers-specs-dev
    golang-github-sirupsen-logrus-dev golang-golang-x-net-dev golang-golang-x-sys-dev golang-golang-x-text-dev
    golang-google-genproto-dev golang-google-grpc-dev golang-google-protobuf-dev
)

apt=$folder/apt
mkdir -p "$apt"/{lists/partial,archives/partial} "$folder/root"
touch "$apt/status"
# The machine's own lists and packages are not touched.
cat > "$apt/sources.list" <<LIST
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main
LIST
cat > "$apt/apt.conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$apt/apt.conf
apt-get update -qq
(cd "$apt/archives" && apt-get download -qq "${packages[@]}")
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done
rm -rf "$apt"

usr=$folder/root/usr
# Debian links these into /usr, which is elsewhere here.
export GOROOT=$folder/go
rm -rf "$GOROOT" && cp -a "$usr/lib/go-1.24" "$GOROOT"
for part in src test api misc; do
    [ ! -L "$GOROOT/$part" ] || ln -sfn "$usr/share/go-1.24/$part" "$GOROOT/$part"
done
[ ! -L "$GOROOT/pkg/include" ] || ln -sfn "$usr/share/go-1.24/pkg/include" "$GOROOT/pkg/include"
cd "$source"
GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS= GOPATH=$usr/share/gocode GOCACHE=$folder/cache \
    "$GOROOT/bin/go" build -o "$program" main.go
rm -rf "$folder/cache" "$folder/root" "$GOROOT"
