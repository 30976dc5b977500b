FROM python:3-slim
COPY --from=roundsman /roundsman /usr/local/bin/roundsman
WORKDIR /app
COPY app.py ./
USER 1000:1000
HEALTHCHECK --start-period=30s CMD ["roundsman", "health"]
ENTRYPOINT ["roundsman", "-i", "max", "-l", "8080", "--"]
CMD ["python3", "app.py"]
