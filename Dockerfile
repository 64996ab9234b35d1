# Built for the machine's own platform, or with buildx for linux/amd64 and linux/arm64, by cross-compiling.
FROM --platform=$BUILDPLATFORM golang:1.27.4-trixie AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
# .git comes along: without VERSION, the build stamps a version with the revision into the binary.
COPY . .
ARG TARGETOS TARGETARCH VERSION="" REVISION=""
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath \
    -ldflags="-s -w -X main.version=$VERSION" -o /out/authsession . && \
    deploy/licenses.sh /out/licenses

FROM gcr.io/distroless/static-debian13:nonroot
ARG VERSION="" REVISION=""
LABEL org.opencontainers.image.title="authsession" \
      org.opencontainers.image.description="POST /auth/session of an open-banking platform, over Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 8080
# -live, because Swarm replaces an unhealthy container, which does not repair a Redis that is down.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/authsession", "healthcheck", "-live"]
ENTRYPOINT ["/authsession"]
