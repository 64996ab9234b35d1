FROM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# .git comes along: the build stamps its revision into the binary (-version).
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /authsession .

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /authsession /authsession
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/authsession", "healthcheck"]
ENTRYPOINT ["/authsession"]
