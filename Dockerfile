FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /opt/rustunnel \
    && /opt/rustunnel/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements/run.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY rustunnel_py/ rustunnel_py/
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --disable-pip-version-check \
        --no-deps --no-build-isolation --no-index --wheel-dir /tmp/wheel . \
    && /opt/rustunnel/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-index /tmp/wheel/*.whl

FROM python:3.12-slim
RUN groupadd --system --gid 10001 rustunnel \
    && useradd --system --uid 10001 --gid rustunnel --home-dir /var/lib/rustunnel --shell /usr/sbin/nologin rustunnel \
    && install -d -o rustunnel -g rustunnel -m 0700 /var/lib/rustunnel
COPY --from=build /opt/rustunnel /opt/rustunnel
ENV PATH=/opt/rustunnel/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RUSTUNNEL_DATA=/var/lib/rustunnel \
    RUSTUNNEL_SERVER__HTTP_PORT=80 \
    RUSTUNNEL_SERVER__HTTPS_PORT=443 \
    RUSTUNNEL_SERVER__CONTROL_PORT=4040 \
    RUSTUNNEL_SERVER__DASHBOARD_HOST=:: \
    RUSTUNNEL_SERVER__DASHBOARD_PORT=8443 \
    RUSTUNNEL_SERVER__DASHBOARD_TLS=true
USER rustunnel
WORKDIR /var/lib/rustunnel
VOLUME /var/lib/rustunnel
EXPOSE 80 443 4040 8443 20000-20099
STOPSIGNAL SIGTERM
# Over HTTPS on loopback; plain where dashboard_plain is set instead.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["rustunnel-py", "health"]
ENTRYPOINT ["rustunnel-py"]
CMD ["serve"]
