# Builds the images of the services and of outboxctl: --build-arg PROGRAM=order-service (stock-service,
# payment-service, cmd/outboxctl). One static binary, no shell, an ordinary user, nothing written.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG PROGRAM
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -buildid=" -o /out/program ./${PROGRAM}

FROM gcr.io/distroless/static-debian12:nonroot
ARG PROGRAM
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="outbox-saga ${PROGRAM}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/program /program
COPY connectors /connectors
USER 65532:65532
ENTRYPOINT ["/program"]
