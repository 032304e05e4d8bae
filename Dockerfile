# Builds the images of the services, of outboxctl and of the supervisor: --build-arg PROGRAM=order-service (stock-service,
# payment-service), or --target program or supervisor --build-arg PROGRAM=outboxctl. One static binary, no shell, an ordinary
# user, nothing written.
# The first stage builds all of them and does not know PROGRAM, so that Docker builds it once for all
# images; debezium/Dockerfile begins its stage with the same lines for that reason.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN mkdir /out && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags="-s -w -buildid=" -o /out/ ./cmd/outboxctl ./order-service ./stock-service ./payment-service

FROM gcr.io/distroless/static-debian12:nonroot AS program
ARG PROGRAM
COPY --from=build /out/${PROGRAM} /program
COPY connectors /connectors
ARG VERSION=dev
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="outbox-saga ${PROGRAM}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
USER 65532:65532
ENTRYPOINT ["/program"]

# outboxctl as the supervisor. It asks its own /readyz: it has looked at the system lately.
FROM program AS supervisor
HEALTHCHECK --interval=3s --timeout=4s --retries=2 --start-period=20s CMD ["/program", "healthcheck", "http://127.0.0.1:8084/readyz"]
CMD ["supervise", "--connectors", "/connectors", "--addr", ":8084"]

# A service. It asks its own /readyz: the database answers, the consumer has its partitions, tomorrow's exist.
FROM program
HEALTHCHECK --interval=3s --timeout=4s --retries=2 --start-period=20s CMD ["/program", "healthcheck"]
